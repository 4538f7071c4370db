/* A prediction for people: what was seen of the guest, a table of the transports, and what follows
 * from it. Pure text, from the answer to "predict". */
#ifndef TOOLS_PREDICTION_VIEW_H
#define TOOLS_PREDICTION_VIEW_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdio.h>

#include "transport/base/error.h"

/* -EPROTO for an answer that is none; then nothing was printed. */
int prediction_print(FILE *out, const cJSON *answer, struct error *err);
/* Whether the transport that was asked for, the first, can be used and converges. */
bool prediction_is_good(const cJSON *answer);

#endif
