/* Runs the tests that criterion/criterion.h registers, each in a process of its own, one after the
 * other. */
#include <criterion/criterion.h>

#include <stdarg.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FAILED = 1, SKIPPED = 77, DEFAULT_TIMEOUT = 300 };

/* The registry is written before main, `failures` and `fini` only in the process of one test. */
static struct {
    struct test_case *tests;
    struct test_suite *suites;
    atomic_uint failures;
    void (*fini)(void);
} state;

void test_case_add(struct test_case *test)
{
    test->next = state.tests;
    state.tests = test;
}

void test_suite_add(struct test_suite *suite)
{
    suite->next = state.suites;
    state.suites = suite;
}

static void finish(int code)
{
    if (state.fini)
        state.fini();
    fflush(NULL);
    exit(code);
}

void test_check(bool good, bool fatal, const char *file, int line, const char *expression,
                const char *format, ...)
{
    char text[2048];
    va_list args;

    if (good)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "[----] %s:%d: not true: %s: %s\n", file, line, expression, text);
    atomic_fetch_add(&state.failures, 1);
    if (fatal)
        finish(FAILED);
}

void test_skip(const char *format, ...)
{
    char text[2048];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "[----] skipped: %s\n", text);
    finish(SKIPPED);
    abort();
}

void test_log(const char *format, ...)
{
    char text[2048];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "[----] %s\n", text);
}

static const struct test_options *options_of(const struct test_case *test)
{
    static const struct test_options none;

    for (const struct test_suite *s = state.suites; s; s = s->next) {
        if (strcmp(s->name, test->suite) == 0)
            return &s->options;
    }
    return &none;
}

static void run_here(const struct test_case *test, void *parameter)
{
    const struct test_options *suite = options_of(test);
    double timeout = test->options.timeout > 0 ? test->options.timeout : suite->timeout;
    void (*init)(void) = test->options.init ? test->options.init : suite->init;

    alarm(timeout > 0 ? (unsigned)timeout * 4
                      : DEFAULT_TIMEOUT); /* a sanitizer slows everything down */
    state.fini = test->options.fini ? test->options.fini : suite->fini;
    if (init)
        init();
    if (test->run)
        test->run();
    else
        test->run_with(parameter);
    finish(atomic_load(&state.failures) ? FAILED : 0);
}

/* The wait status of the test's process. */
static int run_forked(const struct test_case *test, void *parameter)
{
    int status = -1;
    pid_t child;

    fflush(NULL);
    child = fork();
    if (child == 0)
        run_here(test, parameter);
    if (child < 0 || waitpid(child, &status, 0) != child)
        perror("cannot run a test in a process of its own");
    return status;
}

/* True unless it failed. */
static bool run(const struct test_case *test, void *parameter)
{
    int status = run_forked(test, parameter);
    bool skipped = WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED;
    bool passed = WIFEXITED(status) && WEXITSTATUS(status) == 0;

    fprintf(stderr, "[%s] %s::%s",
            skipped  ? "SKIP"
            : passed ? "PASS"
                     : "FAIL",
            test->suite, test->name);
    if (!skipped && !passed)
        fprintf(stderr, " (%s %d)", WIFSIGNALED(status) ? "signal" : "exit code",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    fputc('\n', stderr);
    return passed || skipped;
}

static unsigned run_all(const struct test_case *test)
{
    struct criterion_test_params p;
    unsigned failures = 0;

    if (test->options.disabled)
        return 0;
    if (test->run)
        return !run(test, NULL);
    p = test->parameters();
    for (size_t i = 0; i < p.length; i++)
        failures += !run(test, (char *)p.params + i * p.size);
    return failures;
}

int main(void)
{
    unsigned failures = 0;

    for (const struct test_case *test = state.tests; test; test = test->next)
        failures += run_all(test);
    fprintf(stderr, "[====] %u failed\n", failures);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
