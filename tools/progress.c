#include "tools/progress.h"

#include <stdio.h>
#include <string.h>

#include "transport/base/clock.h"
#include "transport/base/options.h"

#define RATE_MIN_NS (500 * NS_PER_MS) /* over less, one chunk more or less decides */

enum { BAR_MIN = 10, BAR_MAX = 30, TEXT_SIZE = 256 };

static unsigned percent_done(const struct migration_status *status)
{
    uint64_t done = status->round_bytes_done < status->round_bytes ? status->round_bytes_done
                                                                   : status->round_bytes;

    if (status->round_bytes == 0)
        return status->phase == MIGRATION_PRECOPY ? 0 : 100;
    return (unsigned)((double)done * 100 / (double)status->round_bytes);
}

static const char *headline(const struct migration_status *status, char *out, size_t size)
{
    static const char *const texts[] = {
        [MIGRATION_CONNECTING] = "connecting", [MIGRATION_SWITCHOVER] = "switching over",
        [MIGRATION_COMMITTING] = "committing", [MIGRATION_IN_DOUBT] = "in doubt",
        [MIGRATION_COMPLETED] = "completed",   [MIGRATION_FAILED] = "failed",
        [MIGRATION_STUCK] = "stuck",
    };

    if (status->phase != MIGRATION_PRECOPY)
        return texts[status->phase];
    snprintf(out, size, "round %u", status->round);
    return out;
}

static void add(char *out, size_t size, const char *label, const char *text)
{
    size_t used = strlen(out);

    snprintf(out + used, size - used, "%s%s%s", used ? ", " : "", label, text);
}

/* Rate, dirty rate, predicted downtime, throttle, ETA: what is known of them. */
static void figures(const struct migration_status *status, char *out, size_t size)
{
    char text[32];

    out[0] = '\0';
    if (status->bandwidth)
        add(out, size, "", format_rate((double)status->bandwidth, text, sizeof(text)));
    if (status->bandwidth && (status->dirty_rate || status->round))
        add(out, size, "dirty ", format_rate((double)status->dirty_rate, text, sizeof(text)));
    if (status->predicted_downtime_ns)
        add(out, size, "downtime ~",
            format_time(status->predicted_downtime_ns, text, sizeof(text)));
    snprintf(text, sizeof(text), "%u%%", status->throttle);
    if (status->throttle)
        add(out, size, "throttled ", text);
    if (status->eta_ns == UINT64_MAX)
        add(out, size, "ETA ", "never at this dirty rate");
    else if (status->eta_ns)
        add(out, size, "ETA ", format_time(status->eta_ns, text, sizeof(text)));
}

static void draw_bar(unsigned percent, unsigned width, char *out)
{
    unsigned full = width * percent / 100;

    out[0] = '[';
    memset(out + 1, '#', full);
    memset(out + 1 + full, '.', width - full);
    strcpy(out + 1 + width, "] ");
}

char *progress_bar(const struct migration_status *status, unsigned width, char *out, size_t size)
{
    char head[32], detail[TEXT_SIZE], left[64], bar[BAR_MAX + 4] = "";
    unsigned percent = percent_done(status), used;

    if (status->phase == MIGRATION_PRECOPY) {
        figures(status, detail, sizeof(detail));
        snprintf(left, sizeof(left), "%s %3u%%", headline(status, head, sizeof(head)), percent);
    } else {
        snprintf(detail, sizeof(detail), "%.*s", TEXT_SIZE - 1, status->message);
        snprintf(left, sizeof(left), "%s", headline(status, head, sizeof(head)));
    }
    used = (unsigned)(strlen(left) + strlen(detail)) + 4;
    if (status->phase == MIGRATION_PRECOPY && width >= used + BAR_MIN)
        draw_bar(percent, width - used > BAR_MAX ? BAR_MAX : width - used, bar);
    snprintf(out, size < width + 1 ? size : width + 1, "%s %s%s", left, bar, detail);
    return out;
}

char *progress_line(const struct migration_status *status, char *out, size_t size)
{
    char head[32], detail[TEXT_SIZE], bytes[32];
    bool over = status->phase >= MIGRATION_IN_DOUBT; /* then the message says it all */

    if (over && status->message[0]) {
        snprintf(out, size, "%s", status->message);
        return out;
    }
    if (status->phase != MIGRATION_PRECOPY) {
        snprintf(out, size, "%s%s%s", headline(status, head, sizeof(head)),
                 status->message[0] ? ": " : "", status->message);
        return out;
    }
    figures(status, detail, sizeof(detail));
    snprintf(out, size, "%s: %u%% of %s%s%s", headline(status, head, sizeof(head)),
             percent_done(status), format_size(status->round_bytes, bytes, sizeof(bytes)),
             detail[0] ? ", " : "", detail);
    return out;
}

void progress_estimate(struct progress_rate *rate, struct migration_status *status)
{
    uint64_t bytes, ns;

    if (status->phase != MIGRATION_PRECOPY)
        return;
    if (!rate->begun || rate->round != status->round)
        *rate = (struct progress_rate){true, status->round, status->elapsed_ns,
                                       status->round_bytes_done};
    if (status->bandwidth || status->round_bytes_done <= rate->start_bytes ||
        status->elapsed_ns < rate->start_ns + RATE_MIN_NS)
        return;
    bytes = status->round_bytes_done - rate->start_bytes;
    ns = status->elapsed_ns - rate->start_ns;
    status->bandwidth = (uint64_t)((double)bytes * 1e9 / (double)ns);
    if (status->bandwidth && status->eta_ns == 0 && status->round_bytes > status->round_bytes_done)
        status->eta_ns = (uint64_t)((double)(status->round_bytes - status->round_bytes_done) * 1e9 /
                                    (double)status->bandwidth);
}

bool progress_due(struct progress_pace *pace, const struct migration_status *status, uint64_t now)
{
    bool same = pace->begun && pace->phase == status->phase && pace->round == status->round;
    bool blank = status->phase == MIGRATION_PRECOPY && status->round_bytes == 0;

    if (blank || (same && now - pace->last_ns < 2 * NS_PER_S))
        return false;
    *pace = (struct progress_pace){true, status->phase, status->round, now};
    return true;
}
