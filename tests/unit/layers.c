/* The layers of the source tree, as its #include lines have them, and the size of its files and
 * functions. */
#include <criterion/criterion.h>

#include <errno.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE_LINES = 600, MAX_FUNCTION_LINES = 80 };

/* Files whose path begins with `under` (and with none of `except`) include no header whose name
 * begins with one of `banned`, unless it begins with one of `allowed`. */
struct rule {
    const char *under, *except[3];
    const char *banned[9], *allowed[3];
    const char *why;
};

static const struct rule rules[] = {
    {"transport/",
     {0},
     {"migrate/", "tools/", "testbed/"},
     {0},
     "transport knows neither guests nor pages"},
    {"transport/base/", {0}, {"transport/"}, {"transport/base/"}, "base is the lowest layer"},
    {"migrate/", {0}, {"tools/", "testbed/"}, {0}, "the engine knows no program around it"},
    {"migrate/",
     {"migrate/guest/"},
     {"sys/socket.h", "sys/un.h", "netdb.h", "ifaddrs.h", "netinet/", "arpa/", "net/", "linux/if",
      "uv.h"},
     {0},
     "the engine gets its connections from transport/"},
    {"migrate/",
     {"migrate/guest/"},
     {"transport/tcp/", "transport/rdma/", "transport/loop/", "transport/filter/"},
     {0},
     "the engine knows transports by their table only"},
    {"migrate/guest/",
     {0},
     {"migrate/", "transport/"},
     {"migrate/guest/", "transport/base/"},
     "guests know neither the engine nor a transport"},
    {"migrate/page/",
     {0},
     {"migrate/", "transport/"},
     {"migrate/page/", "migrate/guest/guest.h", "transport/base/"},
     "encodings know pages and nothing else"},
    {"",
     {"transport/rdma/", "tests/"},
     {"infiniband/", "rdma/"},
     {0},
     "verbs belong to transport/rdma"},
    {"", {"migrate/guest/", "tests/"}, {"linux/kvm.h"}, {0}, "KVM belongs to migrate/guest"},
    {"", {"tests/"}, {"tests/"}, {0}, "the product includes no test"},
};

static bool begins_with_one_of(const char *text, const char *const *prefixes, size_t count)
{
    for (size_t i = 0; i < count && prefixes[i]; i++) {
        if (!strncmp(text, prefixes[i], strlen(prefixes[i])))
            return true;
    }
    return false;
}

static bool rule_applies(const struct rule *rule, const char *path)
{
    return !strncmp(path, rule->under, strlen(rule->under)) &&
           !begins_with_one_of(path, rule->except, 3);
}

/* Why the file at `path` may not include `header`; NULL when it may. */
static const char *why_not(const char *path, const char *header)
{
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (rule_applies(&rules[i], path) && begins_with_one_of(header, rules[i].banned, 9) &&
            !begins_with_one_of(header, rules[i].allowed, 3))
            return rules[i].why;
    }
    return NULL;
}

/* The header that a line includes, into `header`; a quoted name without a folder is beside the
 * file. */
static bool parse_include(const char *line, const char *path, char *header, size_t size)
{
    char name[256];
    const char *slash = strrchr(path, '/');
    bool is_quoted = sscanf(line, " # include \"%255[^\"]\"", name) == 1;

    if (!is_quoted && sscanf(line, " # include <%255[^>]>", name) != 1)
        return false;
    if (is_quoted && slash && !strchr(name, '/'))
        snprintf(header, size, "%.*s/%s", (int)(slash - path), path, name);
    else
        snprintf(header, size, "%s", name);
    return true;
}

/* What is wrong with one file; texts gather in `out`. */
struct checker {
    const char *path; /* from the root of the tree */
    FILE *out;
    unsigned line, function_start; /* 0: outside */
};

static void check_line(struct checker *c, const char *line)
{
    char header[512];
    const char *why;

    c->line++;
    if (parse_include(line, c->path, header, sizeof(header)) && (why = why_not(c->path, header)))
        fprintf(c->out, "%s:%u includes %s: %s\n", c->path, c->line, header, why);
    if (!strcmp(line, "{\n"))
        c->function_start = c->line;
    if (line[0] != '}' || !c->function_start)
        return;
    if (c->line - c->function_start + 1 > MAX_FUNCTION_LINES)
        fprintf(c->out, "%s:%u: a function of %u lines, at most %d\n", c->path, c->function_start,
                c->line - c->function_start + 1, MAX_FUNCTION_LINES);
    c->function_start = 0;
}

static void check_file(FILE *in, const char *path, FILE *out)
{
    struct checker c = {.path = path, .out = out};
    char *line = NULL;
    size_t capacity = 0;

    while (getline(&line, &capacity, in) > 0)
        check_line(&c, line);
    if (c.line > MAX_FILE_LINES)
        fprintf(out, "%s has %u lines, at most %d\n", path, c.line, MAX_FILE_LINES);
    free(line);
}

static bool is_source(const char *path)
{
    const char *dot = strrchr(path, '.');

    return dot && (!strcmp(dot, ".c") || !strcmp(dot, ".h") || !strcmp(dot, ".S"));
}

/* Checks all sources of the tree; returns how many there are. */
static unsigned check_tree(const char *root, FILE *out)
{
    static const char *const folders[] = {"transport", "migrate", "tools", "testbed", "tests"};
    char paths[5][4096], *roots[6] = {NULL};
    unsigned files = 0;
    FTSENT *entry;
    FTS *tree;

    for (size_t i = 0; i < 5; i++) {
        snprintf(paths[i], sizeof(paths[i]), "%s%s", root, folders[i]);
        roots[i] = paths[i];
    }
    tree = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    cr_assert(tree, "%s: %s", root, strerror(errno));
    while ((entry = fts_read(tree))) {
        FILE *in;

        if (entry->fts_info != FTS_F || !is_source(entry->fts_path))
            continue;
        in = fopen(entry->fts_path, "r");
        cr_assert(in, "%s: %s", entry->fts_path, strerror(errno));
        check_file(in, entry->fts_path + strlen(root), out);
        fclose(in);
        files++;
    }
    fts_close(tree);
    return files;
}

Test(layers, the_tree_keeps_to_them)
{
    const char *end = strstr(__FILE__, "tests/unit/layers.c");
    char root[4096], *found = NULL;
    size_t size;
    FILE *out = open_memstream(&found, &size);
    unsigned files;

    cr_assert(end, "%s", __FILE__);
    snprintf(root, sizeof(root), "%.*s", (int)(end - __FILE__), __FILE__);
    files = check_tree(root, out);
    fclose(out);
    cr_expect(size == 0, "\n%s", found);
    cr_expect_gt(files, 30u, "only %u sources under %s", files, root);
    free(found);
}

/* That the checks can fail: one file each, of one piece of text, and what is to be said of it. */
static const struct {
    const char *path, *text;
    const char *want; /* "": nothing */
} line_cases[] = {
    {"transport/tcp/tcp.c", "#include \"migrate/guest/guest.h\"\n", "neither guests nor pages"},
    {"transport/tcp/tcp.c", "#include <sys/socket.h>\n", ""},
    {"transport/base/log.c", "#include \"transport/transport.h\"\n", "lowest layer"},
    {"transport/base/log.c", "#include \"transport/base/error.h\"\n", ""},
    {"transport/base/log.c", "#include \"error.h\"\n", ""},
    {"migrate/channel.c", "#include <sys/socket.h>\n", "from transport/"},
    {"migrate/channel.c", "  #  include   <netinet/tcp.h>\n", "from transport/"},
    {"migrate/page/blob.c", "#include <netdb.h>\n", "from transport/"},
    {"migrate/channel.c", "#include \"transport/base/address.h\"\n#include <poll.h>\n", ""},
    {"migrate/engine.c", "#include \"transport/tcp/tcp.h\"\n", "by their table only"},
    {"migrate/engine.c", "#include \"transport/transport.h\"\n", ""},
    {"migrate/engine.c", "#include \"tools/progress.h\"\n", "no program around it"},
    {"migrate/guest/lab/vm.c", "#include <linux/kvm.h>\n", ""},
    {"migrate/guest/lab/vm.c", "#include \"vm.h\"\n#include \"migrate/guest/guest.h\"\n", ""},
    {"migrate/guest/lab/vm.c", "#include \"migrate/policy.h\"\n", "neither the engine nor"},
    {"migrate/guest/lab/vm.c", "#include \"transport/transport.h\"\n", "neither the engine nor"},
    {"migrate/page/zero.c", "#include \"migrate/policy.h\"\n", "nothing else"},
    {"migrate/engine.c", "#include <linux/kvm.h>\n", "migrate/guest"},
    {"tools/lab.c", "#include <linux/kvm.h>\n", "migrate/guest"},
    {"transport/tcp/tcp.c", "#include <infiniband/verbs.h>\n", "transport/rdma"},
    {"tools/check.c", "#include <rdma/rdma_cma.h>\n", "transport/rdma"},
    {"transport/rdma/qp.c", "#include <infiniband/verbs.h>\n", ""},
    {"tools/check.c", "#include \"tests/unit/x.h\"\n", "includes no test"},
    {"tools/check.c", "/* #include <linux/kvm.h> */\n", ""},
};

static char *findings(const char *path, const char *text)
{
    char *found = NULL;
    size_t size;
    FILE *out = open_memstream(&found, &size);
    FILE *in = fmemopen((void *)text, strlen(text), "r");

    cr_assert(in && out);
    check_file(in, path, out);
    fclose(in);
    fclose(out);
    return found;
}

static void expect_findings(const char *path, const char *text, const char *want)
{
    char *found = findings(path, text);

    if (want[0])
        cr_expect(strstr(found, want), "%s with %.60s: expected \"%s\", got \"%s\"", path, text,
                  want, found);
    else
        cr_expect_str_eq(found, "", "%s with %.60s: expected nothing, got \"%s\"", path, text,
                         found);
    free(found);
}

Test(layers, a_breach_is_found)
{
    for (size_t i = 0; i < sizeof(line_cases) / sizeof(line_cases[0]); i++)
        expect_findings(line_cases[i].path, line_cases[i].text, line_cases[i].want);
}

/* "head", then `lines` lines, then "tail". */
static char *text_of(const char *head, unsigned lines, const char *tail)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    fputs(head, out);
    while (lines--)
        fputs("    x;\n", out);
    fputs(tail, out);
    fclose(out);
    return text;
}

Test(layers, size_counts)
{
    static const struct {
        const char *head;
        unsigned lines;
        const char *tail, *want;
    } cases[] = {
        {"int f(void)\n{\n", 78, "}\n", ""},
        {"int f(void)\n{\n", 79, "}\n", "a function of 81 lines"},
        {"int f(void)\n{\n}\n", 200, "}\n", ""},
        {"struct s {\n", 200, "};\n", ""},
        {"", 600, "", ""},
        {"", 601, "", "has 601 lines"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *text = text_of(cases[i].head, cases[i].lines, cases[i].tail);

        expect_findings("tools/main.c", text, cases[i].want);
        free(text);
    }
}
