#ifndef TESTS_FORKING_PARAMETERIZED_H
#define TESTS_FORKING_PARAMETERIZED_H

#include <criterion/criterion.h>

#endif
