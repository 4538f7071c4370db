#include "migrate/guest/host_memory.h"

#include <inttypes.h>
#include <stdio.h>

uint64_t host_memory_available(void)
{
    char line[128];
    uint64_t kib, bytes = UINT64_MAX;
    FILE *file = fopen("/proc/meminfo", "re");

    if (!file)
        return bytes;
    while (bytes == UINT64_MAX && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
            bytes = kib * 1024;
    fclose(file);
    return bytes;
}
