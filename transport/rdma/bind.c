/* What both ends share while lanes bind: one event channel for all, so that one thread sees to all.
 */
#include <errno.h>
#include <poll.h>

#include "transport/base/clock.h"
#include "transport/rdma/lane.h"

int rdma_bind_event(struct rdma *r, uint64_t deadline, struct rdma_cm_event **event,
                    struct error *err)
{
    for (;;) {
        struct pollfd fds[] = {
            {.fd = r->listening->fd, .events = POLLIN},
            {.fd = r->stop_fd, .events = POLLIN},
        };
        int result = latch_check(&r->latch, err);

        if (result < 0)
            return result;
        if (clock_now() >= deadline)
            return error_set(err, ETIMEDOUT, "timed out");
        if (rdma_get_cm_event(r->listening, event) == 0)
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return error_set_errno(err, errno, "cannot wait for lanes");
        if (poll(fds, 2, clock_ms_until(deadline)) < 0 && errno != EINTR)
            return error_set_errno(err, errno, "cannot wait for lanes");
    }
}

int rdma_bind_finish(struct rdma *r, struct error *err)
{
    int result = 0;

    for (unsigned i = 0; i < r->params.lanes && !result; i++)
        result = rdma_lane_bound(&r->lanes[i], err);
    /* Otherwise some lanes still have their events there. */
    if (!result)
        rdma_bind_close(r);
    return result;
}

void rdma_bind_close(struct rdma *r)
{
    if (r->listener)
        rdma_destroy_id(r->listener);
    if (r->listening)
        rdma_destroy_event_channel(r->listening);
    r->listener = NULL;
    r->listening = NULL;
}
