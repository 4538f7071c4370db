/* In which state QEMU says its guest is, and how a migration of its own stands. */
#ifndef MIGRATE_GUEST_QEMU_RUN_STATE_H
#define MIGRATE_GUEST_QEMU_RUN_STATE_H

#include "migrate/guest/qemu/qmp.h"

/* query-status's word ("running", "paused", …), cut to fit; "" when there is none. */
int qemu_run_state(struct qmp *q, char *out, size_t size, struct error *err);
/* Whether the guest runs, as QEMU says; false with every error. */
int qemu_is_running(struct qmp *q, bool *running, struct error *err);
/* Pure: whether query-migrate's word, "" for none, is that of a migration that has ended or never
 * began. */
bool qemu_migration_is_over(const char *status);
/* What announce-self is told: rounds enough for switches to learn where the guest is. The caller's.
 */
cJSON *qemu_announcement(void);

#endif
