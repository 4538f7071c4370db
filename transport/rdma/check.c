#include "transport/rdma/check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "transport/base/interface.h"
#include "transport/base/options.h"
#include "transport/rdma/device.h"
#include "transport/rdma/lane.h"

enum { RESOLVE_MS = 1500 };

/* What the transport pins beside guest memory, and registers at once; both as estimates. */
static const uint64_t OWN_BYTES_PER_LANE = 1 << 20, LARGEST_PIECE = 64 << 20;

struct check {
    const struct transport_params *params;
    const struct address *at;
    enum transport_end end;
    uint64_t bytes;
    struct transport_findings *out;
    struct sockaddr_storage address;
    socklen_t address_size;
    char interface[IF_NAMESIZE]; /* that leads to `at`; "" when not known */
    struct rdma_event_channel *events;
    struct rdma_cm_id *id;
};

#define FATAL(c, ...) transport_findings_add((c)->out, true, __VA_ARGS__)
#define NOTE(c, ...)  transport_findings_add((c)->out, false, __VA_ARGS__)

static const char *interface_of(const struct check *c)
{
    return c->interface[0] ? c->interface : "INTERFACE";
}

/* The names in a directory that begin with `prefix`, ", " between them; how many there are. */
static unsigned list_names(const char *directory, const char *prefix, char *out, size_t size)
{
    DIR *entries = opendir(directory);
    struct dirent *entry;
    unsigned count = 0;

    out[0] = '\0';
    while (entries && (entry = readdir(entries))) {
        if (entry->d_name[0] == '.' || strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
            continue;
        if (strlen(out) + strlen(entry->d_name) + 3 <= size) {
            strcat(out, count ? ", " : "");
            strcat(out, entry->d_name);
        }
        count++;
    }
    if (entries)
        closedir(entries);
    return count;
}

static bool find_address(struct check *c)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM}, *found;
    int result = getaddrinfo(c->at->host, NULL, &hints, &found);

    if (result) {
        FATAL(c, "'%s' is no address that could be looked at: %s", c->at->host,
              gai_strerror(result));
        return false;
    }
    memcpy(&c->address, found->ai_addr, found->ai_addrlen);
    c->address_size = found->ai_addrlen;
    freeaddrinfo(found);
    if (c->address.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&c->address)->sin6_port = htons(9);
    else
        ((struct sockaddr_in *)&c->address)->sin_port = htons(9);
    return true;
}

/* A datagram socket knows the way without sending anything. */
static void find_interface(struct check *c)
{
    int fd = socket(c->address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    if (connect(fd, (struct sockaddr *)&c->address, c->address_size) < 0 ||
        interface_of_socket(fd, c->interface, NULL) < 0)
        c->interface[0] = '\0';
    close(fd);
}

static void no_device(struct check *c)
{
    char devices[128];
    unsigned count = list_names("/sys/class/infiniband", "", devices, sizeof devices);

    char remedy[160] = "";

    if (strcmp(c->interface, "lo") != 0)
        snprintf(remedy, sizeof remedy,
                 "for soft-RoCE `modprobe rdma_rxe; rdma link add rxe0 type rxe netdev %s`, or ",
                 interface_of(c));
    FATAL(c,
          "no RDMA device on the interface %s that %s %s (%s%s): %suse an address of an interface "
          "that has one, or tcp://",
          interface_of(c), c->end == TRANSPORT_DESTINATION ? "has the address" : "leads to",
          c->at->host, count ? "devices here: " : "this host has none", devices, remedy);
}

/* open(2) says more than access(2): cgroups may deny a device as well. */
static void check_node(struct check *c, const char *path, const char *module)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd >= 0)
        close(fd);
    else if (errno == ENOENT || errno == ENXIO || errno == ENODEV)
        FATAL(c, "there is no %s: load the kernel's module, `modprobe %s`", path, module);
    else if (errno == EACCES || errno == EPERM)
        FATAL(c, "this user (id %u) may not open %s: give it read and write access, or run as root",
              geteuid(), path);
    else
        FATAL(c, "cannot open %s: %s", path, strerror(errno));
}

static bool check_nodes(struct check *c)
{
    char devices[128], nodes[128], path[300];

    if (list_names("/sys/class/infiniband", "", devices, sizeof devices) == 0) {
        no_device(c);
        return false;
    }
    check_node(c, "/dev/infiniband/rdma_cm", "rdma_ucm");
    if (list_names("/dev/infiniband", "uverbs", nodes, sizeof nodes) == 0) {
        FATAL(c,
              "there is no /dev/infiniband/uverbs0 for %s: load the kernel's module, `modprobe "
              "ib_uverbs`",
              devices);
    } else {
        snprintf(path, sizeof path, "/dev/infiniband/%.*s", (int)strcspn(nodes, ","), nodes);
        check_node(c, path, "ib_uverbs");
    }
    return c->out->count == 0;
}

static void tell_unreachable(struct check *c, int error)
{
    if (error == ENODEV || error == EADDRNOTAVAIL)
        no_device(c);
    else if (error == ETIMEDOUT)
        FATAL(c,
              "%s does not answer on the link (no ARP or neighbour reply on %s within %d ms): see "
              "whether it is up at both ends",
              c->at->host, interface_of(c), RESOLVE_MS);
    else if (error == EHOSTUNREACH || error == ENETUNREACH)
        FATAL(c,
              "there is no route for RDMA to %s (%s): see `ip route get %s`; %s must be up and "
              "have an RDMA device",
              c->at->host, strerror(error), c->at->host, interface_of(c));
    else
        FATAL(c, "RDMA cannot resolve %s: %s", c->at->host, strerror(error));
}

/* The errno of what came of it, 0 when the id has a device now. */
static int await_resolved(struct check *c)
{
    struct pollfd fd = {.fd = c->events->fd, .events = POLLIN};
    struct rdma_cm_event *event;
    int ready;

    do
        ready = poll(&fd, 1, RESOLVE_MS + 200);
    while (ready < 0 && errno == EINTR);
    if (ready <= 0)
        return ready ? errno : ETIMEDOUT;
    if (rdma_get_cm_event(c->events, &event) < 0)
        return errno;
    bool resolved = event->event == RDMA_CM_EVENT_ADDR_RESOLVED;
    int status = -event->status;
    rdma_ack_cm_event(event);
    return resolved ? 0 : status > 0 ? status : EHOSTUNREACH;
}

/* Leads to a device, or to findings. */
static bool open_device(struct check *c)
{
    struct sockaddr *address = (struct sockaddr *)&c->address;
    int error = 0;

    c->events = rdma_create_event_channel();
    if (!c->events || rdma_create_id(c->events, &c->id, NULL, RDMA_PS_TCP) < 0) {
        FATAL(c,
              "the RDMA connection manager cannot be used: %s; see whether the modules rdma_ucm "
              "and ib_uverbs are loaded",
              strerror(errno));
        return false;
    }
    if (c->end == TRANSPORT_DESTINATION) {
        if (c->address.ss_family == AF_INET6) /* any port */
            ((struct sockaddr_in6 *)address)->sin6_port = 0;
        else
            ((struct sockaddr_in *)address)->sin_port = 0;
        error = rdma_bind_addr(c->id, address) < 0 ? errno : 0;
    } else {
        error = rdma_resolve_addr(c->id, NULL, address, RESOLVE_MS) < 0 ? errno : await_resolved(c);
    }
    if (!error && !c->id->verbs)
        error = ENODEV;
    if (error)
        tell_unreachable(c, error);
    return !error;
}

/* configfs shows the connection manager's choice only while a folder for the device exists. */
static bool default_is_roce_v1(const char *device, unsigned port)
{
    char path[256], mode[32] = "";
    FILE *file;

    snprintf(path, sizeof path, "/sys/kernel/config/rdma_cm/%s/ports/%u/default_roce_mode", device,
             port);
    file = fopen(path, "re");
    if (!file)
        return false;
    if (!fgets(mode, sizeof mode, file))
        mode[0] = '\0';
    fclose(file);
    return strncmp(mode, "IB/RoCE v1", 10) == 0;
}

static void check_gid(struct check *c, const struct transport_device *device)
{
    if (!device->gid_type[0]) {
        FATAL(c,
              "port %u of %s has no RoCE v2 GID for its address: see `rdma link` and "
              "/sys/class/infiniband/%s/ports/%u/gids, and give %s an address (`ip addr add`) or "
              "bring it up anew",
              device->port, device->name, device->name, device->port, interface_of(c));
    } else if (default_is_roce_v1(device->name, device->port)) {
        snprintf(c->out->gid_type, sizeof c->out->gid_type, "RoCE v1");
        NOTE(c,
             "%s is set to RoCE v1, which no router forwards: `echo 'RoCE v2' > "
             "/sys/kernel/config/rdma_cm/%s/ports/%u/default_roce_mode`",
             device->name, device->name, device->port);
    }
}

static void check_port(struct check *c, const struct transport_device *device)
{
    struct ibv_port_attr port;

    if (ibv_query_port(c->id->verbs, (uint8_t)device->port, &port)) {
        FATAL(c, "port %u of %s cannot be asked for its state", device->port, device->name);
        return;
    }
    if (port.state != IBV_PORT_ACTIVE)
        FATAL(c, "port %u of %s is %s, not active: `ip link set %s up`, see to its cable%s",
              device->port, device->name, device_port_state(c->id->verbs, device->port),
              interface_of(c),
              port.link_layer == IBV_LINK_LAYER_INFINIBAND ? " and the subnet manager" : "");
    if (port.link_layer == IBV_LINK_LAYER_ETHERNET)
        check_gid(c, device);
}

/* Pinned at this end at most, the transport's own buffers included. */
static uint64_t bytes_to_pin(const struct check *c)
{
    uint64_t all = c->bytes + c->params->lanes * OWN_BYTES_PER_LANE;
    uint64_t limit = c->params->pin_limit ? c->params->pin_limit : TRANSPORT_DEFAULT_PIN_LIMIT;

    return c->params->registration == TRANSPORT_REGISTER_CHUNK && limit < all ? limit : all;
}

static void check_limits(struct check *c, const struct transport_device *device)
{
    struct ibv_device_attr limits;
    struct error err = {0};
    uint64_t room;
    bool in_chunks = c->params->registration == TRANSPORT_REGISTER_CHUNK;
    uint64_t piece = in_chunks ? TRANSPORT_MAX_TRANSFER : LARGEST_PIECE;
    uint64_t pieces = bytes_to_pin(c) / piece + 2 * c->params->lanes;

    if (ibv_query_device(c->id->verbs, &limits)) {
        NOTE(c, "%s cannot be asked for its limits", device->name);
        return;
    }
    if (limits.max_mr > 0 && pieces > (uint64_t)limits.max_mr)
        FATAL(c,
              "%s can register %d pieces of memory, and %llu would be needed: say --rdma-register "
              "chunk with an --rdma-pin-limit of at most %llu MiB",
              device->name, limits.max_mr, (unsigned long long)pieces,
              (unsigned long long)((uint64_t)limits.max_mr * TRANSPORT_MAX_TRANSFER >> 21));
    if (rdma_piece_limit(c->params, c->end == TRANSPORT_SOURCE, &room, &err) < 0)
        FATAL(c, "%s", err.text);
    if (c->params->operation == TRANSPORT_READ &&
        (c->end == TRANSPORT_SOURCE ? limits.max_qp_rd_atom : limits.max_qp_init_rd_atom) < 1)
        FATAL(c, "%s does not do RDMA READ: say --rdma-op write", device->name);
}

static bool may_pin_anything(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

    return syscall(SYS_capget, &header, data) == 0 && data[0].effective & 1u << CAP_IPC_LOCK;
}

static void check_memlock(struct check *c)
{
    uint64_t needed = bytes_to_pin(c);
    char need[32], may[32], remedy[128] = "";
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ||
        limit.rlim_cur >= needed || may_pin_anything())
        return;
    uint64_t room = limit.rlim_cur / OWN_BYTES_PER_LANE;
    if (room > 2 * c->params->lanes)
        snprintf(remedy, sizeof remedy, ", or say --rdma-register chunk --rdma-pin-limit %lluM",
                 (unsigned long long)room);
    FATAL(c,
          "%s would be pinned for RDMA, and this process may pin %s (`ulimit -l`, memlock): "
          "start wander %safter `ulimit -l unlimited`, or with LimitMEMLOCK=infinity in its "
          "service%s",
          format_size(needed, need, sizeof need), format_size(limit.rlim_cur, may, sizeof may),
          c->end == TRANSPORT_DESTINATION ? "receive " : "", remedy);
}

static void describe_end(struct check *c, const struct transport_device *device)
{
    struct transport_findings *out = c->out;

    snprintf(out->device, sizeof out->device, "%s", device->name);
    snprintf(out->link_layer, sizeof out->link_layer, "%s", device->link_layer);
    snprintf(out->gid_type, sizeof out->gid_type, "%s", device->gid_type);
    if (strcmp(device->link_layer, "Ethernet") == 0)
        snprintf(out->passage, sizeof out->passage, "UDP port 4791 (RoCE v2)");
    out->port = device->port;
    out->mtu = device->mtu;
}

void rdma_check(const struct transport_params *params, const struct address *at,
                enum transport_end end, uint64_t bytes, struct transport_findings *out)
{
    struct check c = {.params = params, .at = at, .end = end, .bytes = bytes, .out = out};
    struct transport_device device = {0};

    if (find_address(&c)) {
        find_interface(&c);
        if (check_nodes(&c) && open_device(&c)) {
            device_read(c.id, &device);
            describe_end(&c, &device);
            check_port(&c, &device);
            check_limits(&c, &device);
        }
    }
    check_memlock(&c);
    if (c.id)
        rdma_destroy_id(c.id);
    if (c.events)
        rdma_destroy_event_channel(c.events);
}
