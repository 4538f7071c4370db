/* The device below a transport in reports and in REPORT. Private to the measurement's files. */
#ifndef MIGRATE_MEASUREMENT_DEVICE_H
#define MIGRATE_MEASUREMENT_DEVICE_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "migrate/measurement.h"

/* Adds "rdma": the source's device, and the destination's inside it; null when neither is known.
 * False without memory. */
bool device_add_report(cJSON *document, const struct measurement *m);

/* As "device" of the destination's half, or null; and back. -EPROTO, in which case *out is half
 * filled. */
bool device_encode(cJSON *object, const struct device_measurement *device);
int device_decode(const cJSON *object, struct device_measurement *out, struct error *err);

#endif
