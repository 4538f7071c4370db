/* The lines of ../abi.h on COM1. Only vCPU 0 writes them. */
#ifndef LAB_IMAGE_CONSOLE_H
#define LAB_IMAGE_CONSOLE_H

#include <stdbool.h>
#include <stdint.h>

void console_init(void);
/* A line is begun with its word, gets its pairs, and is ended. */
void line_begin(const char *word);
void line_number(const char *key, uint64_t value);
void line_text(const char *key, const char *value);
void line_end(void);
/* True if the character `wanted` has arrived; others are dropped. */
bool console_received(char wanted);
/* Says why the guest cannot go on, tells the VMM, and stops this vCPU for good. */
_Noreturn void panic(const char *why);
_Noreturn void panic_text(const char *why, const char *text);
_Noreturn void panic_number(const char *why, const char *key, uint64_t value);

#endif
