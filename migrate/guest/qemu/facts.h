/* What two QEMUs must agree on before a guest can go from one to the other, and what keeps a guest
 * from being moved at all. */
#ifndef MIGRATE_GUEST_QEMU_FACTS_H
#define MIGRATE_GUEST_QEMU_FACTS_H

#include "migrate/guest/guest.h"
#include "migrate/guest/qemu/qmp.h"

/* Gathered from a QEMU, source or destination, running or waiting for an incoming guest. */
struct qemu_facts;

/* Version (query-version), versioned machine type (not the alias: qom-get /machine "type",
 * query-machines), accelerator (query-kvm; else tcg), CPU type and count (query-cpus-fast,
 * query-hotpluggable-cpus; CPU features through qom where they can be read), RAM backends with
 * sizes, devices (qom-list /machine/peripheral and peripheral-anon: id, type, bus), block nodes
 * that devices use (driver, format, size, read-only, cache mode; not the path: paths may differ
 * between hosts), network back ends' kinds. -errno when QEMU does not answer. */
int qemu_facts_gather(struct qmp *q, struct qemu_facts **out, struct error *err);
void qemu_facts_free(struct qemu_facts *f);

/* "kvm" or "tcg"; vCPUs; QEMU's name of the guest ("" when it has none). */
const char *qemu_facts_accel(const struct qemu_facts *f);
unsigned qemu_facts_vcpus(const struct qemu_facts *f);
const char *qemu_facts_name(const struct qemu_facts *f);

/* The platform part of a description: u32 version, then JSON text. *out is the caller's to free.
 * -ENOMEM, -EFBIG. */
int qemu_facts_encode(const struct qemu_facts *f, uint8_t **out, uint32_t *size, struct error *err);
/* Bytes are hostile. -EBADMSG. */
int qemu_facts_decode(const void *bytes, size_t size, struct qemu_facts **out, struct error *err);

/* Pure. A reason with its remedy for every difference that keeps the guest `source` from going on
 * in the QEMU `here`: machine type, accelerator, CPU type, vCPUs, RAM backends, devices (missing
 * here, only here, other type, other id), disks (size, format, read-only), QEMU versions that
 * cannot exchange state (a newer source to an older destination). */
void qemu_facts_compare(const struct qemu_facts *source, const struct qemu_facts *here,
                        struct reasons *reasons);

/* What of the running QEMU `pid` would escape the dirty tracker or the pinned memory, or end badly:
 * aio=native and io_uring disks, vfio, vhost-user, vhost-vdpa devices, virtio-mem, virtio-balloon
 * with free-page-reporting, ivshmem, nvdimm; another migration active or a block job running
 * (query-migrate, query-block-jobs); a guest that is not running or paused normally (query-status);
 * migration blockers (query-migrate's blocked-reasons). Each with the remedy. Notes, not reasons,
 * go to `notes` (may be NULL): a disk cache mode that is unsafe across hosts (writeback on files
 * that are not opened with O_DIRECT is fine on coherent storage only), disks that are not shared
 * storage as far as it shows. */
int qemu_facts_refuse(struct qmp *q, pid_t pid, const struct qemu_facts *f, struct reasons *reasons,
                      struct reasons *notes, struct error *err);

#endif
