#include "migrate/guest/lab/lab.h"

extern const char lab_image_begin[], lab_image_end[];

const void *lab_image(size_t *size)
{
    *size = (size_t)(lab_image_end - lab_image_begin);
    return lab_image_begin;
}
