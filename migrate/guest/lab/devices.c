#include "migrate/guest/lab/devices.h"

#include <errno.h>
#include <string.h>

#include "migrate/guest/lab/abi.h"
#include "transport/base/clock.h"

enum {
    SERIAL_PORTS = 8,
    LINE_CONTROL_DIVISOR = 0x80,
    LINE_STATUS_DATA = 0x01,
    LINE_STATUS_EMPTY = 0x60, /* transmitter empty, idle */
    MODEM_STATUS_READY = 0xb0,
    NO_INTERRUPT_PENDING = 0x01,
};

enum serial_register {
    SERIAL_DATA,
    SERIAL_IER,
    SERIAL_IIR,
    SERIAL_LCR,
    SERIAL_MCR,
    SERIAL_LSR,
    SERIAL_MSR,
    SERIAL_SCRATCH
};

void devices_init(struct devices *d)
{
    memset(d, 0, sizeof *d);
    pthread_mutex_init(&d->lock, NULL);
}

void devices_destroy(struct devices *d)
{
    pthread_mutex_destroy(&d->lock);
}

static void append_console(struct devices_state *s, const char *text, uint32_t size)
{
    uint32_t excess;

    if (size > DEVICES_CONSOLE_SIZE) {
        text += size - DEVICES_CONSOLE_SIZE;
        size = DEVICES_CONSOLE_SIZE;
    }
    excess = s->console_size + size > DEVICES_CONSOLE_SIZE
                 ? s->console_size + size - DEVICES_CONSOLE_SIZE
                 : 0;
    memmove(s->console, s->console + excess, s->console_size - excess);
    memcpy(s->console + s->console_size - excess, text, size);
    s->console_size += size - excess;
}

/* The console is text for terminals and logs: of a guest's bytes only those that are harmless there
 * are kept. */
static void transmit(struct devices_state *s, char byte)
{
    char text[DEVICES_LINE_SIZE + 1];

    if (byte == '\r')
        return;
    if (byte != '\n' && (byte < ' ' || byte > '~'))
        byte = '?';
    if (byte != '\n' && s->line_size < DEVICES_LINE_SIZE - 1) {
        s->line[s->line_size++] = byte;
        return;
    }
    memcpy(text, s->line, s->line_size);
    text[s->line_size] = '\n';
    append_console(s, text, s->line_size + 1);
    text[s->line_size] = '\0';
    console_parse(text, &s->account);
    s->line_size = 0;
    if (byte != '\n')
        s->line[s->line_size++] = byte;
}

static uint8_t receive(struct devices_state *s)
{
    uint8_t byte = s->receive[0];

    if (s->receive_count == 0)
        return 0;
    s->receive_count--;
    memmove(s->receive, s->receive + 1, s->receive_count);
    return byte;
}

static uint8_t serial_in(struct devices_state *s, unsigned reg)
{
    bool divisor = s->line_control & LINE_CONTROL_DIVISOR;

    switch (reg) {
    case SERIAL_DATA:
        return divisor ? s->divisor[0] : receive(s);
    case SERIAL_IER:
        return divisor ? s->divisor[1] : s->interrupt_enable;
    case SERIAL_IIR:
        return NO_INTERRUPT_PENDING;
    case SERIAL_LCR:
        return s->line_control;
    case SERIAL_MCR:
        return s->modem_control;
    case SERIAL_LSR:
        return LINE_STATUS_EMPTY | (s->receive_count > 0 ? LINE_STATUS_DATA : 0);
    case SERIAL_MSR:
        return MODEM_STATUS_READY;
    default:
        return s->scratch;
    }
}

static void serial_out(struct devices_state *s, unsigned reg, uint8_t value)
{
    bool divisor = s->line_control & LINE_CONTROL_DIVISOR;

    if (divisor && reg <= SERIAL_IER)
        s->divisor[reg] = value;
    else if (reg == SERIAL_DATA)
        transmit(s, (char)value);
    else if (reg == SERIAL_IER)
        s->interrupt_enable = value;
    else if (reg == SERIAL_LCR)
        s->line_control = value;
    else if (reg == SERIAL_MCR)
        s->modem_control = value;
    else if (reg == SERIAL_SCRATCH)
        s->scratch = value;
}

static bool is_serial(uint16_t port)
{
    return port >= LAB_PORT_SERIAL && port < LAB_PORT_SERIAL + SERIAL_PORTS;
}

static uint32_t read_clock(struct devices_state *s, unsigned vcpu)
{
    uint64_t now = clock_now() + (uint64_t)s->clock_offset;

    s->clock_latch[vcpu] = (uint32_t)(now >> 32);
    return (uint32_t)now;
}

static uint32_t port_in(struct devices_state *s, unsigned vcpu, uint16_t port)
{
    switch (port) {
    case LAB_PORT_CLOCK_LOW:
        return read_clock(s, vcpu);
    case LAB_PORT_CLOCK_HIGH:
        return s->clock_latch[vcpu];
    case LAB_PORT_MOVES:
        return s->moves;
    case LAB_PORT_SLEPT:
        return s->slept[vcpu];
    case LAB_PORT_MAGIC:
        return LAB_MAGIC;
    default:
        return UINT32_MAX;
    }
}

uint32_t devices_in(struct devices *d, unsigned vcpu, uint16_t port, unsigned size)
{
    uint32_t value = UINT32_MAX;

    pthread_mutex_lock(&d->lock);
    if (is_serial(port))
        value = serial_in(&d->state, port - LAB_PORT_SERIAL) | 0xffffff00u;
    else if (size == 4)
        value = port_in(&d->state, vcpu, port);
    pthread_mutex_unlock(&d->lock);
    return value;
}

/* The count goes up by less than 2^32 from one to the next: its high half follows. */
static void note_written(struct devices_state *s, uint32_t low)
{
    s->account.pages_written += (uint32_t)(low - (uint32_t)s->account.pages_written);
}

enum device_request devices_out(struct devices *d, unsigned vcpu, uint16_t port, unsigned size,
                                uint32_t value)
{
    (void)vcpu;
    if (is_serial(port)) {
        pthread_mutex_lock(&d->lock);
        serial_out(&d->state, port - LAB_PORT_SERIAL, (uint8_t)value);
        pthread_mutex_unlock(&d->lock);
    } else if (size == 4 && port == LAB_PORT_WRITTEN) {
        pthread_mutex_lock(&d->lock);
        note_written(&d->state, value);
        pthread_mutex_unlock(&d->lock);
    } else if (size == 4 && port == LAB_PORT_SLEEP) {
        return DEVICE_SLEEP;
    } else if (size == 4 && port == LAB_PORT_EXIT) {
        return DEVICE_EXIT;
    }
    return DEVICE_DONE;
}

void devices_slept(struct devices *d, unsigned vcpu, uint64_t ns)
{
    pthread_mutex_lock(&d->lock);
    d->state.slept[vcpu] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
    pthread_mutex_unlock(&d->lock);
}

int devices_receive(struct devices *d, char byte)
{
    struct devices_state *s = &d->state;
    int ret = -EAGAIN;

    pthread_mutex_lock(&d->lock);
    if (s->receive_count < DEVICES_RECEIVE_SIZE) {
        s->receive[s->receive_count++] = (uint8_t)byte;
        ret = 0;
    }
    pthread_mutex_unlock(&d->lock);
    return ret;
}

void devices_note(struct devices *d, const char *text)
{
    pthread_mutex_lock(&d->lock);
    append_console(&d->state, text, (uint32_t)strlen(text));
    append_console(&d->state, "\n", 1);
    pthread_mutex_unlock(&d->lock);
}

void devices_console(struct devices *d, char *out, size_t size)
{
    const struct devices_state *s = &d->state;
    size_t count;

    if (size == 0)
        return;
    pthread_mutex_lock(&d->lock);
    count = s->console_size < size - 1 ? s->console_size : size - 1;
    memcpy(out, s->console + s->console_size - count, count);
    pthread_mutex_unlock(&d->lock);
    out[count] = '\0';
}

void devices_account(struct devices *d, struct guest_workload *out)
{
    pthread_mutex_lock(&d->lock);
    *out = d->state.account;
    pthread_mutex_unlock(&d->lock);
}

void devices_save(struct devices *d, struct devices_state *out)
{
    pthread_mutex_lock(&d->lock);
    *out = d->state;
    pthread_mutex_unlock(&d->lock);
}

void devices_load(struct devices *d, const struct devices_state *state, bool moved,
                  int64_t clock_offset_ns)
{
    pthread_mutex_lock(&d->lock);
    d->state = *state;
    if (moved) {
        d->state.moves++;
        d->state.account.gap_ns = 0; /* of an earlier move: this one's is yet to be measured */
        d->state.clock_offset =
            (int64_t)((uint64_t)state->clock_offset - (uint64_t)clock_offset_ns);
    }
    pthread_mutex_unlock(&d->lock);
}
