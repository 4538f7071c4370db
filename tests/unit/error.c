/* The error convention: the first text wins, prefixes go before it, nothing overflows. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "transport/base/error.h"

static void expect_text(const struct error *err, const char *expected)
{
    cr_expect(!strcmp(err->text, expected), "expected \"%s\", got \"%s\"", expected, err->text);
}

Test(error, set_returns_the_code_and_keeps_the_text)
{
    struct error err = {0};

    cr_expect_eq(error_set(&err, EINVAL, "lane %d", 3), -EINVAL);
    cr_expect_eq(err.code, EINVAL, "expected EINVAL, got %d", err.code);
    expect_text(&err, "lane 3");
}

Test(error, the_first_error_wins)
{
    struct error err = {0};

    error_set(&err, EINVAL, "first");
    cr_expect_eq(error_set(&err, EIO, "second"), -EIO);
    cr_expect_eq(error_set_errno(&err, EIO, "third"), -EIO);
    cr_expect_eq(err.code, EINVAL, "expected EINVAL, got %d", err.code);
    expect_text(&err, "first");
}

Test(error, errno_is_put_into_words)
{
    struct error err = {0};

    cr_expect_eq(error_set_errno(&err, ENOENT, "cannot open %s", "x"), -ENOENT);
    expect_text(&err, "cannot open x: No such file or directory");
}

Test(error, prefixes_go_before_the_text)
{
    struct error err = {0};

    error_set(&err, ETIMEDOUT, "no answer");
    cr_expect_eq(error_prefix(&err, "lane %d", 2), -ETIMEDOUT);
    cr_expect_eq(error_prefix(&err, "session"), -ETIMEDOUT);
    expect_text(&err, "session: lane 2: no answer");
}

Test(error, a_cleared_error_takes_a_new_text)
{
    struct error err = {0};

    error_set(&err, EIO, "old");
    error_clear(&err);
    expect_text(&err, "");
    error_set(&err, EPIPE, "new");
    cr_expect_eq(err.code, EPIPE, "expected EPIPE, got %d", err.code);
    expect_text(&err, "new");
}

Test(error, nowhere_to_put_it_is_fine)
{
    cr_expect_eq(error_set(NULL, EIO, "x"), -EIO);
    cr_expect_eq(error_set_errno(NULL, EIO, "x"), -EIO);
    cr_expect_eq(error_prefix(NULL, "x"), 0);
    error_clear(NULL);
}

Test(error, long_texts_are_cut)
{
    struct {
        struct error err;
        char guard[8];
    } box = {.guard = "guard"};
    char flood[2 * ERROR_TEXT_SIZE];

    memset(flood, 'a', sizeof(flood) - 1);
    flood[sizeof(flood) - 1] = '\0';
    error_set_errno(&box.err, EIO, "%s", flood);
    cr_expect_eq(strlen(box.err.text), ERROR_TEXT_SIZE - 1);
    error_prefix(&box.err, "%s", flood);
    cr_expect_eq(strlen(box.err.text), ERROR_TEXT_SIZE - 1);
    error_prefix(&box.err, "short");
    cr_expect_eq(strlen(box.err.text), ERROR_TEXT_SIZE - 1);
    cr_expect(!strncmp(box.err.text, "short: aaa", 10), "got \"%.20s\"", box.err.text);
    cr_expect(!strcmp(box.guard, "guard"), "the text ran over its end");
}
