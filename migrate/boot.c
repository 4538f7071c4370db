#include "migrate/boot.h"

#include <stdio.h>

void boot_id_read(char out[BOOT_ID_SIZE])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    out[0] = '\0';
    if (f) {
        if (fscanf(f, "%39s", out) != 1)
            out[0] = '\0';
        fclose(f);
    }
}
