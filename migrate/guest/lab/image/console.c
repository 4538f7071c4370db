#include "console.h"

#include "clock.h"
#include "cpu.h"
#include "migrate/guest/lab/abi.h"

/* 16550 registers, from LAB_PORT_SERIAL. */
enum { DATA = 0, INTERRUPT_ENABLE = 1, FIFO_CONTROL = 2, LINE_CONTROL = 3, LINE_STATUS = 5 };
enum { STATUS_RECEIVED = 0x01, STATUS_TRANSMITTER_EMPTY = 0x20 };

void console_init(void)
{
    out8(LAB_PORT_SERIAL + INTERRUPT_ENABLE, 0);
    out8(LAB_PORT_SERIAL + LINE_CONTROL, 0x03);
    out8(LAB_PORT_SERIAL + FIFO_CONTROL, 0x01);
}

static void put_char(char c)
{
    while (!(in8(LAB_PORT_SERIAL + LINE_STATUS) & STATUS_TRANSMITTER_EMPTY))
        spin_hint();
    out8(LAB_PORT_SERIAL + DATA, (uint8_t)c);
}

static void put_text(const char *text)
{
    while (*text)
        put_char(*text++);
}

static void put_number(uint64_t value)
{
    char digits[20];
    unsigned count = 0;

    do
        digits[count++] = (char)('0' + value % 10);
    while (value /= 10);
    while (count)
        put_char(digits[--count]);
}

void line_begin(const char *word)
{
    put_text("wander-guest: ");
    put_text(word);
}

void line_number(const char *key, uint64_t value)
{
    put_char(' ');
    put_text(key);
    put_char('=');
    put_number(value);
}

void line_text(const char *key, const char *value)
{
    put_char(' ');
    put_text(key);
    put_char('=');
    put_text(value);
}

void line_end(void)
{
    put_text("\r\n");
}

bool console_received(char wanted)
{
    bool found = false;

    while (in8(LAB_PORT_SERIAL + LINE_STATUS) & STATUS_RECEIVED)
        found |= in8(LAB_PORT_SERIAL + DATA) == (uint8_t)wanted;
    return found;
}

static _Noreturn void stop(void)
{
    line_end();
    if (clock_vmm_present())
        out32(LAB_PORT_EXIT, 1);
    for (;;)
        halt();
}

_Noreturn void panic(const char *why)
{
    line_begin("panic ");
    put_text(why);
    stop();
}

_Noreturn void panic_text(const char *why, const char *text)
{
    line_begin("panic ");
    put_text(why);
    put_char(' ');
    put_text(text);
    stop();
}

_Noreturn void panic_number(const char *why, const char *key, uint64_t value)
{
    line_begin("panic ");
    put_text(why);
    line_number(key, value);
    stop();
}
