#include "migrate/measurement.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "transport/base/interface.h"

/* Text that is to travel: printable ASCII only, cut to fit. */
static void copy_printable(char *out, size_t size, const char *text)
{
    size_t n = 0;

    for (; *text && *text != '\n' && n + 1 < size; text++)
        out[n++] = *text >= ' ' && *text <= '~' ? *text : '?';
    out[n] = 0;
}

/* The value of the first "key : value" line, as /proc/cpuinfo (proc_cpuinfo(5)) has them. */
static void read_cpu_model(char *out, size_t size)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char *line = NULL;
    size_t capacity = 0;

    if (!file)
        return;
    while (getline(&line, &capacity, file) > 0) {
        const char *colon = strchr(line, ':');

        if (strncmp(line, "model name", 10) || !colon)
            continue;
        copy_printable(out, size, colon + 1 + strspn(colon + 1, " \t"));
        break;
    }
    free(line);
    fclose(file);
}

/* A number of /sys/class/net/<interface>/; `unknown` where the device has none (speed of lo:
 * EINVAL). */
static int64_t read_interface_number(const char *interface, const char *name, int64_t unknown)
{
    char path[64 + MEASUREMENT_MAX_TEXT];
    int64_t value = unknown;
    FILE *file;

    snprintf(path, sizeof(path), "/sys/class/net/%s/%s", interface, name);
    file = fopen(path, "re");
    if (!file)
        return unknown;
    if (fscanf(file, "%" SCNd64, &value) != 1 || value < 0)
        value = unknown;
    fclose(file);
    return value;
}

static void read_interface(int socket, struct host_facts *out)
{
    char name[IF_NAMESIZE];

    if (socket < 0 || interface_of_socket(socket, name, NULL))
        return;
    copy_printable(out->interface, sizeof(out->interface), name);
    out->link_mbit = read_interface_number(name, "speed", -1);
    out->mtu = (int)read_interface_number(name, "mtu", 0);
}

void host_facts_read(int socket, struct host_facts *out)
{
    struct utsname names;

    *out = (struct host_facts){.link_mbit = -1};
    if (uname(&names) == 0) {
        char kernel[sizeof(names.sysname) + sizeof(names.release) + sizeof(names.machine) + 3];

        snprintf(kernel, sizeof(kernel), "%s %s %s", names.sysname, names.release, names.machine);
        copy_printable(out->kernel, sizeof(out->kernel), kernel);
        copy_printable(out->hostname, sizeof(out->hostname), names.nodename);
    }
    read_cpu_model(out->cpu, sizeof(out->cpu));
    read_interface(socket, out);
    copy_printable(out->version, sizeof(out->version), WANDER_VERSION);
}

/* The second field of /proc/self/statm: resident pages (proc_pid_statm(5)). */
uint64_t process_resident_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    uint64_t pages = 0;

    if (!file)
        return 0;
    if (fscanf(file, "%*u %" SCNu64, &pages) != 1)
        pages = 0;
    fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}
