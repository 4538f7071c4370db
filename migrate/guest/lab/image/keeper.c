/* What vCPU 0 does for all: it reports how much was written, notices moves, and asks for checks. */
#include <stddef.h>

#include "console.h"
#include "layout.h"
#include "vcpu.h"

#define SECOND_NS  1000000000ull
#define CONSOLE_NS 10000000ull

static struct {
    uint32_t moves, check_moves; /* the newest; when the newest check was asked for */
    bool checking, check_asked;
    uint64_t bad_reported[MAX_VCPUS]; /* of each vCPU's check_bad */
    uint64_t console_at;
    uint64_t stat_at, stat_written;
} keeper;

static uint32_t vcpu_count(void)
{
    return (uint32_t)guest.parameters.vcpus;
}

static void ask_for_check(void)
{
    keeper.checking = true;
    keeper.check_asked = false;
    keeper.check_moves = keeper.moves;
    __atomic_fetch_add(&check.request, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&check.moves, keeper.moves, __ATOMIC_SEQ_CST);
}

static uint64_t pages_written(void)
{
    uint64_t written = 0;

    for (uint32_t i = 0; i < vcpu_count(); i++)
        written += __atomic_load_n(&vcpu_table[i].counter, __ATOMIC_RELAXED);
    return written;
}

static void report_stat(uint64_t now)
{
    uint64_t written = pages_written(), ns = now - keeper.stat_at;

    line_begin("stat");
    line_number("written", written);
    line_number("rate", (written - keeper.stat_written) * 1000 / (ns / 1000000));
    line_end();
    keeper.stat_at = now;
    keeper.stat_written = written;
}

static void report_move(uint64_t gap)
{
    line_begin("moved");
    line_number("move", keeper.moves);
    line_number("gap_ns", gap);
    line_end();
}

static bool check_finished(void)
{
    for (uint32_t i = 0; i < vcpu_count(); i++)
        if (__atomic_load_n(&vcpu_table[i].check_done, __ATOMIC_SEQ_CST) != check.request)
            return false;
    return true;
}

static const char *result_name(enum stamp_result result)
{
    static const char *const names[] = {
        [STAMP_MISPLACED] = "misplaced",
        [STAMP_TORN] = "torn",
        [STAMP_STALE] = "stale",
        [STAMP_CORRUPT] = "corrupt",
    };

    return names[result];
}

static void report_check(void)
{
    uint64_t pages = 0, bad = 0;
    const struct vcpu *finder = NULL;

    for (uint32_t i = 0; i < vcpu_count(); i++) {
        uint64_t found = vcpu_table[i].check_bad - keeper.bad_reported[i];

        pages += vcpu_table[i].check_pages;
        bad += found;
        keeper.bad_reported[i] += found;
        if (found && (!finder || vcpu_table[i].bad_page < finder->bad_page))
            finder = &vcpu_table[i];
    }
    line_begin("check");
    line_number("move", keeper.check_moves);
    line_number("pages", pages);
    line_number("bad", bad);
    if (finder) {
        line_number("page", finder->bad_page);
        line_text("result", result_name(finder->bad_result));
    }
    line_end();
}

void keeper_init(uint64_t now)
{
    keeper.moves = guest.clock->moves();
    check.moves = keeper.moves;
    keeper.stat_at = now;
    keeper.console_at = now;
}

/* A real move begins the check anew. Gaps can follow so closely that no check would ever end: then
 * one goes on, and another follows it. */
static void note_move(uint32_t moves, uint64_t gap)
{
    keeper.moves = moves;
    if (guest.clock->counts_moves || !keeper.checking)
        ask_for_check();
    keeper.check_asked = keeper.check_moves != moves;
    __atomic_store_n(&check.moves, moves, __ATOMIC_SEQ_CST);
    report_move(gap);
}

void keeper_look(uint64_t now, uint32_t moves, uint64_t gap)
{
    if (moves != keeper.moves)
        note_move(moves, gap);
    if (now - keeper.console_at >= CONSOLE_NS) {
        keeper.console_at = now;
        keeper.check_asked |= console_received('c');
        if (guest.clock->written)
            guest.clock->written(pages_written());
    }
    if (keeper.checking && check_finished()) {
        keeper.checking = false;
        report_check();
    }
    if (keeper.check_asked && !keeper.checking)
        ask_for_check();
    if (now - keeper.stat_at >= SECOND_NS)
        report_stat(now);
}
