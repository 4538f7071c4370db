/* Text to numbers and back, for command lines, workload specifications and reports. */
#ifndef TRANSPORT_BASE_OPTIONS_H
#define TRANSPORT_BASE_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "transport/base/error.h"

/* "512M", "4GiB", "4096": bytes, powers of 1024 (K M G T P, optional iB or B). Rejects 0, signs,
 * trailing text and anything that overflows 64 bits (-EINVAL, -ERANGE); the error repeats the text.
 */
int parse_size(const char *text, uint64_t *bytes, struct error *err);
/* "100M" or "100MiB/s" (powers of 1024, bytes/s), "10Gbit" or "10Gbit/s" (powers of 1000, bits/s):
 * result in bytes per second. */
int parse_rate(const char *text, uint64_t *bytes_per_s, struct error *err);
/* "300ms", "10s", "2m", "50us"; a bare number is milliseconds. Result in ns. */
int parse_time(const char *text, uint64_t *ns, struct error *err);
/* A decimal integer in [low, high]. */
int parse_number(const char *text, uint64_t low, uint64_t high, uint64_t *value, struct error *err);

/* Human forms: "1.5 GiB", "1.5 GiB/s", "12.3 ms", each into `out`, which is returned. */
char *format_size(uint64_t bytes, char *out, size_t size);
char *format_rate(double bytes_per_s, char *out, size_t size);
char *format_time(uint64_t ns, char *out, size_t size);

/* Splits "key=value,key=value" one pair at a time: copies the next pair out and moves *cursor on.
 * Returns 1 with a pair, 0 at the end, -EINVAL for text that is no pair. A value may contain no
 * comma. */
int next_pair(const char **cursor, char *key, size_t key_size, char *value, size_t value_size,
              struct error *err);

#endif
