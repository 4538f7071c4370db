#include "transport/rdma/device.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

unsigned device_mtu_bytes(enum ibv_mtu mtu)
{
    return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128u << mtu : 0;
}

const char *device_port_state(struct ibv_context *verbs, unsigned port)
{
    static const char *const states[] = {
        [IBV_PORT_NOP] = "?",
        [IBV_PORT_DOWN] = "down",
        [IBV_PORT_INIT] = "initialising",
        [IBV_PORT_ARMED] = "armed",
        [IBV_PORT_ACTIVE] = "active",
        [IBV_PORT_ACTIVE_DEFER] = "active (deferred)",
    };
    struct ibv_port_attr attributes;

    if (ibv_query_port(verbs, (uint8_t)port, &attributes) ||
        attributes.state >= sizeof states / sizeof *states)
        return "?";
    return states[attributes.state];
}

static const char *gid_type_name(uint32_t type)
{
    switch (type) {
    case IBV_GID_TYPE_IB:
        return "InfiniBand";
    case IBV_GID_TYPE_ROCE_V1:
        return "RoCE v1";
    case IBV_GID_TYPE_ROCE_V2:
        return "RoCE v2";
    default:
        return "";
    }
}

/* Which entry of the port's table the id uses, by its own queue pair, or else by its GID. */
static int find_gid(struct rdma_cm_id *id, struct ibv_gid_entry *entry)
{
    const union ibv_gid *own = &id->route.addr.addr.ibaddr.sgid;
    struct ibv_port_attr port;
    struct ibv_qp_init_attr init;
    struct ibv_qp_attr attributes;

    if (id->qp && ibv_query_qp(id->qp, &attributes, IBV_QP_AV, &init) == 0 &&
        attributes.ah_attr.is_global)
        return ibv_query_gid_ex(id->verbs, id->port_num, attributes.ah_attr.grh.sgid_index, entry,
                                0);
    if (ibv_query_port(id->verbs, id->port_num, &port))
        return -1;
    for (int i = 0; i < port.gid_tbl_len; i++)
        if (ibv_query_gid_ex(id->verbs, id->port_num, (uint32_t)i, entry, 0) == 0 &&
            memcmp(&entry->gid, own, sizeof *own) == 0 && entry->gid_type != IBV_GID_TYPE_ROCE_V1)
            return 0;
    return -1;
}

static void read_gid(struct rdma_cm_id *id, struct transport_device *out)
{
    struct ibv_gid_entry entry;

    if (find_gid(id, &entry) != 0)
        return;
    inet_ntop(AF_INET6, entry.gid.raw, out->gid, sizeof out->gid);
    snprintf(out->gid_type, sizeof out->gid_type, "%s", gid_type_name(entry.gid_type));
}

static enum ibv_mtu path_mtu(struct rdma_cm_id *id, enum ibv_mtu port_mtu)
{
    struct ibv_qp_init_attr init;
    struct ibv_qp_attr attributes;

    if (id->qp && ibv_query_qp(id->qp, &attributes, IBV_QP_STATE | IBV_QP_PATH_MTU, &init) == 0 &&
        attributes.qp_state >= IBV_QPS_RTR && attributes.path_mtu)
        return attributes.path_mtu;
    return port_mtu;
}

void device_read(struct rdma_cm_id *id, struct transport_device *out)
{
    struct ibv_port_attr port;

    snprintf(out->name, sizeof out->name, "%s", ibv_get_device_name(id->verbs->device));
    out->port = id->port_num;
    if (ibv_query_port(id->verbs, id->port_num, &port) == 0) {
        snprintf(out->link_layer, sizeof out->link_layer, "%s",
                 port.link_layer == IBV_LINK_LAYER_ETHERNET ? "Ethernet" : "InfiniBand");
        out->mtu = device_mtu_bytes(path_mtu(id, port.active_mtu));
        out->max_message = port.max_msg_sz;
    }
    read_gid(id, out);
}

/* The drivers name several hundred counters; these parts of names mean that something went wrong,
 * or that the network asked to slow down. */
static bool tells_of_trouble(const char *name)
{
    static const char *const parts[] = {
        "_err", "error", "retr", "rnr",     "seq",  "dup",   "drop",
        "disc", "cnp",   "ecn",  "timeout", "wait", "pause",
    };

    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(name, parts[i]))
            return true;
    return false;
}

static bool read_number(const char *directory, const char *name, uint64_t *value)
{
    char path[512];
    FILE *file;
    unsigned long long number;
    int count;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    file = fopen(path, "re");
    if (!file)
        return false;
    count = fscanf(file, "%llu", &number);
    fclose(file);
    *value = number;
    return count == 1;
}

static struct transport_counter *find_counter(struct transport_device *device, const char *name,
                                              bool add)
{
    for (unsigned i = 0; i < device->counter_count; i++)
        if (strcmp(device->counters[i].name, name) == 0)
            return &device->counters[i];
    if (!add || device->counter_count == TRANSPORT_MAX_COUNTERS ||
        strlen(name) >= sizeof device->counters[0].name)
        return NULL;
    struct transport_counter *counter = &device->counters[device->counter_count++];

    strcpy(counter->name, name);
    return counter;
}

static void read_directory(struct transport_device *device, const char *directory, bool first)
{
    DIR *entries = opendir(directory);
    struct dirent *entry;

    if (!entries)
        return;
    while ((entry = readdir(entries))) {
        uint64_t value;
        struct transport_counter *counter;

        if (!tells_of_trouble(entry->d_name) || !read_number(directory, entry->d_name, &value))
            continue;
        counter = find_counter(device, entry->d_name, first);
        if (counter && first)
            counter->before = value;
        if (counter)
            counter->after = value;
    }
    closedir(entries);
}

void device_read_counters(struct transport_device *device, bool first)
{
    static const char *const folders[] = {"hw_counters", "counters"};

    for (unsigned i = 0; i < sizeof folders / sizeof *folders; i++) {
        char directory[256];

        snprintf(directory, sizeof directory, "/sys/class/infiniband/%s/ports/%u/%s", device->name,
                 device->port, folders[i]);
        read_directory(device, directory, first);
    }
}
