/* Criterion's words for ThreadSanitizer builds. Criterion shares memory with its tests at addresses
 * that ThreadSanitizer keeps for itself ("Could not initialize inheritable arena"), so there a test
 * is a fork, and its exit code the result. Covers what the tests here use of criterion 2.4; a
 * program ends as criterion's does. */
#ifndef TESTS_FORKING_CRITERION_H
#define TESTS_FORKING_CRITERION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct criterion_test_params {
    size_t size;
    void *params;
    size_t length;
    void (*cleanup)(struct criterion_test_params *params);
};

struct test_options {
    void (*init)(void);
    void (*fini)(void);
    double timeout; /* seconds */
    bool disabled;
    const char *description;
};

struct test_case {
    const char *suite, *name;
    struct test_options options;
    void (*run)(void);
    void (*run_with)(void *parameter); /* parameterized tests: this and the next instead of run */
    struct criterion_test_params (*parameters)(void);
    struct test_case *next;
};

struct test_suite {
    const char *name;
    struct test_options options;
    struct test_suite *next;
};

void test_case_add(struct test_case *test);
void test_suite_add(struct test_suite *suite);
/* Prints a failure; `fatal` ends the test. */
void test_check(bool good, bool fatal, const char *file, int line, const char *expression,
                const char *format, ...) __attribute__((format(printf, 6, 7)));
void test_skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void test_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

#pragma GCC diagnostic ignored "-Wformat-zero-length"

#define TEST_REGISTER(kind, identifier)                                                            \
    __attribute__((constructor)) static void identifier##_add(void)                                \
    {                                                                                              \
        kind##_add(&identifier);                                                                   \
    }

#define Test(suite_, name_, ...)                                                                   \
    static void suite_##_##name_##_run(void);                                                      \
    static struct test_case suite_##_##name_##_case = {.suite = #suite_,                           \
                                                       .name = #name_,                             \
                                                       .options = {__VA_ARGS__},                   \
                                                       .run = suite_##_##name_##_run};             \
    TEST_REGISTER(test_case, suite_##_##name_##_case)                                              \
    static void suite_##_##name_##_run(void)

#define ParameterizedTestParameters(suite_, name_)                                                 \
    static struct criterion_test_params suite_##_##name_##_parameters(void)

#define ParameterizedTest(parameter_, suite_, name_, ...)                                          \
    static void suite_##_##name_##_run(parameter_);                                                \
    static void suite_##_##name_##_run_with(void *parameter)                                       \
    {                                                                                              \
        suite_##_##name_##_run(parameter);                                                         \
    }                                                                                              \
    static struct test_case suite_##_##name_##_case = {.suite = #suite_,                           \
                                                       .name = #name_,                             \
                                                       .options = {__VA_ARGS__},                   \
                                                       .run_with = suite_##_##name_##_run_with,    \
                                                       .parameters =                               \
                                                           suite_##_##name_##_parameters};         \
    TEST_REGISTER(test_case, suite_##_##name_##_case)                                              \
    static void suite_##_##name_##_run(parameter_)

#define cr_make_param_array(type, array, count, ...)                                               \
    ((struct criterion_test_params){                                                               \
        .size = sizeof(type), .params = (void *)(array), .length = (count), ##__VA_ARGS__})

#define TestSuite(suite_, ...)                                                                     \
    static struct test_suite suite_##_suite = {.name = #suite_, .options = {__VA_ARGS__}};         \
    TEST_REGISTER(test_suite, suite_##_suite)                                                      \
    _Static_assert(true, "takes the semicolon")

#define TEST_CHECK(fatal, good, text, ...)                                                         \
    test_check((good), fatal, __FILE__, __LINE__, text, "" __VA_ARGS__)
#define TEST_COMPARE(fatal, a, operator, b, ...)                                                   \
    TEST_CHECK(fatal, (a) operator(b), #a " " #operator" " #b, ##__VA_ARGS__)

#define cr_assert(condition, ...) TEST_CHECK(true, condition, #condition, ##__VA_ARGS__)
#define cr_expect(condition, ...) TEST_CHECK(false, condition, #condition, ##__VA_ARGS__)
#define cr_assert_not(condition, ...)                                                              \
    TEST_CHECK(true, !(condition), "not " #condition, ##__VA_ARGS__)
#define cr_expect_not(condition, ...)                                                              \
    TEST_CHECK(false, !(condition), "not " #condition, ##__VA_ARGS__)
#define cr_assert_null(pointer, ...)                                                               \
    TEST_CHECK(true, !(pointer), #pointer " is NULL", ##__VA_ARGS__)
#define cr_expect_null(pointer, ...)                                                               \
    TEST_CHECK(false, !(pointer), #pointer " is NULL", ##__VA_ARGS__)
#define cr_assert_not_null(pointer, ...)                                                           \
    TEST_CHECK(true, (pointer), #pointer " is not NULL", ##__VA_ARGS__)
#define cr_expect_not_null(pointer, ...)                                                           \
    TEST_CHECK(false, (pointer), #pointer " is not NULL", ##__VA_ARGS__)
#define cr_assert_eq(a, b, ...)  TEST_COMPARE(true, a, ==, b, ##__VA_ARGS__)
#define cr_expect_eq(a, b, ...)  TEST_COMPARE(false, a, ==, b, ##__VA_ARGS__)
#define cr_assert_neq(a, b, ...) TEST_COMPARE(true, a, !=, b, ##__VA_ARGS__)
#define cr_expect_neq(a, b, ...) TEST_COMPARE(false, a, !=, b, ##__VA_ARGS__)
#define cr_assert_lt(a, b, ...)  TEST_COMPARE(true, a, <, b, ##__VA_ARGS__)
#define cr_expect_lt(a, b, ...)  TEST_COMPARE(false, a, <, b, ##__VA_ARGS__)
#define cr_assert_leq(a, b, ...) TEST_COMPARE(true, a, <=, b, ##__VA_ARGS__)
#define cr_expect_leq(a, b, ...) TEST_COMPARE(false, a, <=, b, ##__VA_ARGS__)
#define cr_assert_gt(a, b, ...)  TEST_COMPARE(true, a, >, b, ##__VA_ARGS__)
#define cr_expect_gt(a, b, ...)  TEST_COMPARE(false, a, >, b, ##__VA_ARGS__)
#define cr_assert_geq(a, b, ...) TEST_COMPARE(true, a, >=, b, ##__VA_ARGS__)
#define cr_expect_geq(a, b, ...) TEST_COMPARE(false, a, >=, b, ##__VA_ARGS__)
#define cr_assert_str_eq(a, b, ...)                                                                \
    TEST_CHECK(true, strcmp((a), (b)) == 0, #a " is " #b, ##__VA_ARGS__)
#define cr_expect_str_eq(a, b, ...)                                                                \
    TEST_CHECK(false, strcmp((a), (b)) == 0, #a " is " #b, ##__VA_ARGS__)
#define cr_assert_str_neq(a, b, ...)                                                               \
    TEST_CHECK(true, strcmp((a), (b)) != 0, #a " is not " #b, ##__VA_ARGS__)
#define cr_expect_str_neq(a, b, ...)                                                               \
    TEST_CHECK(false, strcmp((a), (b)) != 0, #a " is not " #b, ##__VA_ARGS__)
#define cr_assert_str_empty(text, ...)                                                             \
    TEST_CHECK(true, !(text)[0], #text " is empty", ##__VA_ARGS__)
#define cr_expect_str_empty(text, ...)                                                             \
    TEST_CHECK(false, !(text)[0], #text " is empty", ##__VA_ARGS__)
#define cr_assert_str_not_empty(text, ...)                                                         \
    TEST_CHECK(true, (text)[0], #text " is not empty", ##__VA_ARGS__)
#define cr_expect_str_not_empty(text, ...)                                                         \
    TEST_CHECK(false, (text)[0], #text " is not empty", ##__VA_ARGS__)
#define cr_assert_arr_eq(a, b, size, ...)                                                          \
    TEST_CHECK(true, memcmp((a), (b), (size)) == 0, #a " is " #b, ##__VA_ARGS__)
#define cr_expect_arr_eq(a, b, size, ...)                                                          \
    TEST_CHECK(false, memcmp((a), (b), (size)) == 0, #a " is " #b, ##__VA_ARGS__)
#define cr_assert_arr_neq(a, b, size, ...)                                                         \
    TEST_CHECK(true, memcmp((a), (b), (size)) != 0, #a " is not " #b, ##__VA_ARGS__)
#define cr_expect_arr_neq(a, b, size, ...)                                                         \
    TEST_CHECK(false, memcmp((a), (b), (size)) != 0, #a " is not " #b, ##__VA_ARGS__)
#define cr_assert_float_eq(a, b, e, ...)                                                           \
    TEST_CHECK(true, (a) - (b) <= (e) && (b) - (a) <= (e), #a " is about " #b, ##__VA_ARGS__)
#define cr_expect_float_eq(a, b, e, ...)                                                           \
    TEST_CHECK(false, (a) - (b) <= (e) && (b) - (a) <= (e), #a " is about " #b, ##__VA_ARGS__)
#define cr_assert_fail(...) TEST_CHECK(true, false, "fails", ##__VA_ARGS__)
#define cr_expect_fail(...) TEST_CHECK(false, false, "fails", ##__VA_ARGS__)
#define cr_fail(...)        TEST_CHECK(false, false, "fails", ##__VA_ARGS__)
#define cr_skip(...)        test_skip("" __VA_ARGS__)
#define cr_skip_test(...)   test_skip("" __VA_ARGS__)
#define cr_log_info(...)    test_log("" __VA_ARGS__)
#define cr_log_warn(...)    test_log("" __VA_ARGS__)
#define cr_log_error(...)   test_log("" __VA_ARGS__)

#endif
