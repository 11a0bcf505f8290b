/* A libnvidia-ml.so.1 for machines without a GPU: the NVML calls that the meter makes, answered
 * from a file of simulated cards (see card.py, which writes it and describes its layout).
 *
 * The energy counter is the integral of the posted power at the last refresh tick, less a lag, in
 * whole millijoules: as a Hopper card shows it. The file is named by JOULEMETER_FAKE_NVML. The
 * symbol joulemeter_simulated tells the meter that nothing read here was measured. Where
 * JOULEMETER_FAKE_NVML_INIT is set, NVML does not start, with that code.
 *
 * Build: cc -shared -fPIC -O2 -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 fake_nvml.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15,
};
enum {
    FAULT_ERROR = 1, FAULT_RESET, FAULT_STUCK, FAULT_LOST, FAULT_SLOW, FAULT_JUMP, FAULT_HANG,
    FAULT_UNLOADED, FAULT_ODD,
};
enum {
    ANY = 0, ENERGY, POWER, FIELD_VALUES, POWER_INSTANT, NAME, UUID, POWER_LIMIT, CLOCKS, BUS_WIDTH,
    MIG, VIRTUALIZATION, PROCESSES, DRIVER, HANDLE, PCI, COUNT, INIT, MODULE,
};
enum {
    ARCHITECTURE_HOPPER = 9,
    FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186, FIELD_ENERGY_SCOPED = 191,
};
enum { VALUE_UINT = 1, VALUE_ULL = 3 };
enum { SCOPE_MODULE = 1 };

#define RING_SLOTS (1 << 15)
#define RING_KEPT (RING_SLOTS - 8) /* the writer may be overwriting the others */
#define FAULT_SLOTS 64
#define PROCESS_SLOTS 16

struct entry { int64_t t_ns, power_mw, energy_nj; };
struct fault { int64_t from_ns, to_ns; int32_t kind, function; int64_t value; volatile uint64_t anchor; };
struct header { char magic[8]; uint32_t devices, ring_slots, fault_slots, unused; char pad[40]; };
struct card {
    char uuid[80], name[96];
    int64_t refresh_ns, lag_ns, phase_ns, power_limit_mw, base_mj;
    uint32_t mem_clock_mhz, bus_bits, mig_instances, virtualization, module_mw, unused;
    char pad_spec[256 - 80 - 96 - 64];
    volatile uint64_t posts, faults, processes;
    char pad_counts[64 - 24];
    uint32_t pids[PROCESS_SLOTS];
    char pad_pids[512 - 320 - 4 * PROCESS_SLOTS];
    struct fault fault[FAULT_SLOTS];
    struct entry ring[RING_SLOTS];
};
_Static_assert(sizeof(struct header) == 64, "header");
_Static_assert(sizeof(struct card) == 512 + FAULT_SLOTS * 40 + RING_SLOTS * 24, "card");

/* nvml.h */
typedef struct {
    uint32_t field_id, scope_id;
    int64_t timestamp, latency_us;
    uint32_t value_type, result;
    union { double d; uint32_t u; uint64_t ull; } value;
} field_value;
typedef struct { uint32_t pid; unsigned long long memory; uint32_t gi, ci; } process_info;
typedef struct { unsigned long long total, free, used; } memory_info;
typedef struct {
    char bus_id_legacy[16];
    uint32_t domain, bus, device, pci_device, pci_subsystem;
    char bus_id[32];
} pci_info;

EXPORT const int joulemeter_simulated = 1;

static struct header *file;
static int users;
static int64_t started_ns;
static uintptr_t generation; /* counts starts: a handle from before the last one is worth nothing */

static int64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct card *card_at(unsigned index) { return (struct card *)(file + 1) + index; }

/* A handle is a card's address; its low six bits, free by alignment, are the generation and, for a
 * MIG instance, the instance's number from 1 to 7. */
typedef struct handle *handle;
static handle handle_of(struct card *card, unsigned instance)
{
    return (handle)((uintptr_t)card | (generation % 8) << 3 | instance);
}
static unsigned instance_of(handle h) { return (uintptr_t)h & 7; }
static struct card *card_of(handle h)
{
    int current = ((uintptr_t)h >> 3 & 7) == generation % 8;
    return current ? (struct card *)((uintptr_t)h & ~(uintptr_t)63) : NULL;
}

/* The last post at or before t; the newest first, since that is nearly always the one. */
static const struct entry *posted(const struct card *card, int64_t t_ns)
{
    uint64_t count = card->posts;
    __sync_synchronize();
    uint64_t oldest = count > RING_KEPT ? count - RING_KEPT : 0;
    for (uint64_t i = count; i > oldest; i--) {
        const struct entry *e = &card->ring[(i - 1) % RING_SLOTS];
        if (e->t_ns <= t_ns)
            return e;
    }
    return NULL;
}

static int64_t energy_nj(const struct card *card, int64_t t_ns)
{
    const struct entry *e = posted(card, t_ns);
    if (!e)
        return 0;
    /* milliwatts times nanoseconds leave 64 bits after some hours without a post */
    return e->energy_nj + (int64_t)((__int128)e->power_mw * (t_ns - e->t_ns) / 1000);
}

/* The energy at which a fault froze the counter or set it to zero. The writer notes it in the fault
 * (plus one) at its next post; until then the ring still knows it. */
static int64_t anchor_nj(const struct card *card, const struct fault *f, int64_t t_ns)
{
    uint64_t noted = f->anchor;
    return noted ? (int64_t)noted - 1 : energy_nj(card, t_ns);
}

static int64_t last_tick(const struct card *card, int64_t t_ns)
{
    if (card->refresh_ns <= 0)
        return t_ns;
    return t_ns - (t_ns - card->phase_ns) % card->refresh_ns;
}

static uint64_t counter_mj(const struct card *card, int64_t t_ns)
{
    const struct fault *stuck = NULL;
    for (uint64_t i = 0; i < card->faults; i++) {
        const struct fault *f = &card->fault[i];
        if (f->kind == FAULT_STUCK && t_ns >= f->from_ns && t_ns < f->to_ns) {
            stuck = f;
            t_ns = f->from_ns;
        }
    }
    int64_t tick = last_tick(card, t_ns), base_mj = card->base_mj;
    int64_t used_nj = stuck ? anchor_nj(card, stuck, tick - card->lag_ns)
                            : energy_nj(card, tick - card->lag_ns);
    int64_t zero_nj = 0;
    for (uint64_t i = 0; i < card->faults; i++) {
        const struct fault *f = &card->fault[i];
        if (tick < f->from_ns)
            continue;
        if (f->kind == FAULT_RESET) {
            base_mj = 0;
            zero_nj = anchor_nj(card, f, f->from_ns - card->lag_ns);
        } else if (f->kind == FAULT_JUMP) {
            base_mj += f->value;
        }
    }
    return (uint64_t)(base_mj + (used_nj - zero_nj) / 1000000);
}

static uint32_t power_mw(const struct card *card, int64_t t_ns)
{
    const struct entry *e = posted(card, last_tick(card, t_ns) - card->lag_ns);
    return e ? (uint32_t)e->power_mw : 0;
}

/* Since Ampere nvmlDeviceGetPowerUsage is a mean over one second. */
static uint32_t mean_power_mw(const struct card *card, int64_t t_ns)
{
    int64_t end = last_tick(card, t_ns) - card->lag_ns;
    return (uint32_t)((energy_nj(card, end) - energy_nj(card, end - 1000000000LL)) / 1000000);
}

static void rest(int64_t ns)
{
    struct timespec pause = {ns / 1000000000LL, ns % 1000000000LL};
    nanosleep(&pause, NULL);
}

/* Is the driver unloaded now, or was it since the program started NVML? */
static int unloaded(const struct card *card, int64_t since_ns)
{
    int64_t t = now_ns(CLOCK_MONOTONIC);
    for (uint64_t i = 0; i < card->faults; i++) {
        const struct fault *f = &card->fault[i];
        if (f->kind == FAULT_UNLOADED && t >= f->from_ns && (t < f->to_ns || since_ns < f->from_ns))
            return 1;
    }
    return 0;
}

/* What a scripted fault makes of a call; sleeps where the call is to be slow, and where it is to
 * hang for as long as the fault lasts or until it is cleared. */
static int trouble(const struct card *card, int function)
{
    int64_t t = now_ns(CLOCK_MONOTONIC);
    int result = unloaded(card, started_ns) ? UNINITIALIZED : SUCCESS;
    for (uint64_t i = 0; i < card->faults; i++) {
        const struct fault *f = &card->fault[i];
        if (t < f->from_ns || t >= f->to_ns)
            continue;
        int meant = f->function == ANY || f->function == function;
        if (f->kind == FAULT_SLOW && meant) {
            rest(f->value);
        } else if (f->kind == FAULT_HANG && meant) {
            while (i < card->faults && now_ns(CLOCK_MONOTONIC) < f->to_ns)
                rest(1000000);
        } else if (f->kind == FAULT_LOST) {
            return GPU_IS_LOST;
        } else if (f->kind == FAULT_ERROR && meant) {
            result = (int)f->value;
        }
    }
    return result;
}

/* The fault that makes nonsense of what a call gives; NULL: it gives what is true. */
static const struct fault *odd(const struct card *card, int function)
{
    int64_t t = now_ns(CLOCK_MONOTONIC);
    const struct fault *found = NULL;
    for (uint64_t i = 0; i < card->faults; i++) {
        const struct fault *f = &card->fault[i];
        if (f->kind == FAULT_ODD && f->function == function && t >= f->from_ns && t < f->to_ns)
            found = f;
    }
    return found;
}

static uint64_t number(const struct card *card, int function, uint64_t truth)
{
    const struct fault *f = odd(card, function);
    return f ? (uint64_t)f->value : truth;
}

/* The text, or the bytes of the fault's value, the lowest first. */
static void tell(char *text, unsigned length, const struct card *card, int function,
                 const char *truth)
{
    const struct fault *f = odd(card, function);
    if (!f) {
        snprintf(text, length, "%s", truth);
        return;
    }
    uint64_t bytes = (uint64_t)f->value;
    unsigned i = 0;
    for (; bytes && i + 1 < length; bytes >>= 8)
        text[i++] = (char)(bytes & 0xff);
    text[i] = 0;
}

/* Of a call that is the host's the fault of any card. */
static int host_trouble(int function)
{
    for (unsigned i = 0; i < file->devices; i++) {
        const struct card *card = card_at(i);
        int64_t t = now_ns(CLOCK_MONOTONIC);
        for (uint64_t j = 0; j < card->faults; j++) {
            const struct fault *f = &card->fault[j];
            if (f->kind == FAULT_ERROR && f->function == function && t >= f->from_ns && t < f->to_ns)
                return (int)f->value;
        }
    }
    return SUCCESS;
}

static const struct card *odd_card(int function)
{
    for (unsigned i = 0; i < file->devices; i++)
        if (odd(card_at(i), function))
            return card_at(i);
    return NULL;
}

/* Every call on a handle begins so: it gives the card, or returns with what is wrong. */
#define CARD_OF(h, function)                        \
    if (!file) return UNINITIALIZED;                \
    if (!card_of(h)) return INVALID_ARGUMENT;       \
    struct card *card = card_of(h);                 \
    int failed = trouble(card, function);           \
    if (failed) return failed
/* A MIG instance has no power and no energy of its own. */
#define BOARD_OF(h, function)                       \
    CARD_OF(h, function);                           \
    if (instance_of(h)) return NOT_SUPPORTED

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    const char *refused = getenv("JOULEMETER_FAKE_NVML_INIT");
    if (refused)
        return atoi(refused);
    int64_t now = now_ns(CLOCK_MONOTONIC);
    for (unsigned i = 0; file && i < file->devices; i++)
        if (unloaded(card_at(i), now))
            return DRIVER_NOT_LOADED;
    if (file) {
        int failed = host_trouble(INIT);
        if (failed)
            return failed;
        users++;
        return SUCCESS;
    }
    const char *path = getenv("JOULEMETER_FAKE_NVML");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    struct stat st;
    if (fd < 0)
        return DRIVER_NOT_LOADED;
    if (fstat(fd, &st) == 0 && st.st_size >= (off_t)sizeof(struct header)) {
        struct header *map = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (map != MAP_FAILED) {
            if (!memcmp(map->magic, "JMCARD1", 8) && map->ring_slots == RING_SLOTS)
                file = map;
            else
                munmap(map, st.st_size);
        }
    }
    close(fd);
    int failed = DRIVER_NOT_LOADED;
    if (file && (failed = host_trouble(INIT))) {
        munmap(file, st.st_size);
        file = NULL;
    }
    for (unsigned i = 0; file && i < file->devices; i++) {
        if (unloaded(card_at(i), now)) {
            failed = DRIVER_NOT_LOADED;
            munmap(file, st.st_size);
            file = NULL;
        }
    }
    if (!file)
        return failed;
    users = 1;
    started_ns = now;
    generation++;
    return SUCCESS;
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void)
{
    if (!file)
        return UNINITIALIZED;
    if (--users == 0) {
        munmap(file, sizeof *file + file->devices * sizeof(struct card));
        file = NULL;
    }
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(int result)
{
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 13: return "Function Not Found";
    case GPU_IS_LOST: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    case 27: return "Not Ready";
    case 28: return "GPU Not Found";
    default: return "Unknown Error";
    }
}

EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned length)
{
    if (!file)
        return UNINITIALIZED;
    const struct card *card = odd_card(DRIVER);
    if (card)
        tell(text, length, card, DRIVER, "");
    else
        snprintf(text, length, "simulated");
    return host_trouble(DRIVER);
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count)
{
    if (!file)
        return UNINITIALIZED;
    const struct card *card = odd_card(COUNT);
    *count = card ? (unsigned)number(card, COUNT, 0) : file->devices;
    return host_trouble(COUNT);
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle *found)
{
    if (!file)
        return UNINITIALIZED;
    if (index >= file->devices)
        return INVALID_ARGUMENT;
    *found = handle_of(card_at(index), 0);
    return trouble(card_at(index), HANDLE);
}

/* The card's UUID, or that of a MIG instance on it (from 1): "MIG-…-1" for "GPU-…". */
static void name_instance(char *text, size_t length, const struct card *card, unsigned instance)
{
    if (instance)
        snprintf(text, length, "MIG-%s-%u", card->uuid + 4, instance);
    else
        snprintf(text, length, "%s", card->uuid);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, handle *found)
{
    if (!file)
        return UNINITIALIZED;
    for (unsigned i = 0; i < file->devices; i++) {
        struct card *card = card_at(i);
        for (unsigned instance = 0; instance <= card->mig_instances; instance++) {
            char known[96];
            name_instance(known, sizeof known, card, instance);
            if (!strcmp(known, uuid)) {
                *found = handle_of(card, instance);
                return trouble(card, HANDLE);
            }
        }
    }
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetIndex(handle h, unsigned *index)
{
    CARD_OF(h, ANY);
    *index = (unsigned)(card - card_at(0));
    return SUCCESS;
}

EXPORT int nvmlDeviceGetUUID(handle h, char *text, unsigned length)
{
    CARD_OF(h, UUID);
    char known[96];
    name_instance(known, sizeof known, card, instance_of(h));
    tell(text, length, card, instance_of(h) ? ANY : UUID, known);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetName(handle h, char *text, unsigned length)
{
    CARD_OF(h, NAME);
    tell(text, length, card, NAME, card->name);
    return SUCCESS;
}

/* Programs other than the meter ask for it to see whether there is an energy counter. */
EXPORT int nvmlDeviceGetArchitecture(handle h, unsigned *architecture)
{
    CARD_OF(h, ANY);
    *architecture = ARCHITECTURE_HOPPER;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTotalEnergyConsumption(handle h, unsigned long long *energy)
{
    BOARD_OF(h, ENERGY);
    *energy = number(card, ENERGY, counter_mj(card, now_ns(CLOCK_MONOTONIC)));
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPowerUsage(handle h, unsigned *power)
{
    BOARD_OF(h, POWER);
    *power = (unsigned)number(card, POWER, mean_power_mw(card, now_ns(CLOCK_MONOTONIC)));
    return SUCCESS;
}

EXPORT int nvmlDeviceGetFieldValues(handle h, int count, field_value *values)
{
    BOARD_OF(h, FIELD_VALUES);
    for (int i = 0; i < count; i++) {
        field_value *v = &values[i];
        int64_t t = now_ns(CLOCK_MONOTONIC);
        int energy = v->field_id == FIELD_ENERGY || v->field_id == FIELD_ENERGY_SCOPED;
        v->timestamp = now_ns(CLOCK_REALTIME) / 1000;
        int module = !energy && v->scope_id == SCOPE_MODULE && card->module_mw;
        v->result = module ? (uint32_t)trouble(card, MODULE)
            : v->scope_id ? NOT_SUPPORTED : (uint32_t)trouble(card, energy ? ENERGY : POWER);
        if (module && v->result == SUCCESS) {
            v->value_type = VALUE_UINT;
            v->value.ull = 0;
            v->latency_us = 0;
            v->value.u = (uint32_t)number(card, MODULE, power_mw(card, t) + card->module_mw);
            continue;
        }
        if (v->result == SUCCESS && v->field_id == FIELD_POWER_INSTANT)
            v->result = (uint32_t)trouble(card, POWER_INSTANT);
        v->value_type = energy ? VALUE_ULL : VALUE_UINT;
        v->value.ull = 0;
        v->latency_us = (now_ns(CLOCK_MONOTONIC) - t) / 1000;
        if (v->result != SUCCESS)
            continue;
        if (energy)
            v->value.ull = number(card, ENERGY, counter_mj(card, t));
        else if (v->field_id == FIELD_POWER_INSTANT)
            v->value.u = (uint32_t)number(card, POWER, power_mw(card, t));
        else if (v->field_id == FIELD_POWER_AVERAGE)
            v->value.u = (uint32_t)number(card, POWER, mean_power_mw(card, t));
        else
            v->result = NOT_SUPPORTED;
    }
    return SUCCESS;
}

EXPORT int nvmlDeviceGetEnforcedPowerLimit(handle h, unsigned *limit)
{
    CARD_OF(h, POWER_LIMIT);
    *limit = (unsigned)number(card, POWER_LIMIT, (uint64_t)card->power_limit_mw);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetPowerManagementLimit(handle h, unsigned *limit)
{
    return nvmlDeviceGetEnforcedPowerLimit(h, limit);
}

EXPORT int nvmlDeviceGetMaxClockInfo(handle h, int type, unsigned *mhz)
{
    CARD_OF(h, CLOCKS);
    switch (type) {
    case 1: /* NVML_CLOCK_SM */
        *mhz = (unsigned)number(card, CLOCKS, 1980);
        return SUCCESS;
    case 2: /* NVML_CLOCK_MEM */
        *mhz = (unsigned)number(card, CLOCKS, card->mem_clock_mhz);
        return SUCCESS;
    default:
        return NOT_SUPPORTED;
    }
}

EXPORT int nvmlDeviceGetMemoryBusWidth(handle h, unsigned *bits)
{
    CARD_OF(h, BUS_WIDTH);
    *bits = (unsigned)number(card, BUS_WIDTH, card->bus_bits);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetTemperature(handle h, int sensor, unsigned *celsius)
{
    CARD_OF(h, ANY);
    (void)sensor;
    *celsius = 40 + mean_power_mw(card, now_ns(CLOCK_MONOTONIC)) / 20000;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo(handle h, memory_info *memory)
{
    CARD_OF(h, ANY);
    memory->total = 80ULL << 30;
    memory->used = 0;
    memory->free = memory->total;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigMode(handle h, unsigned *current, unsigned *pending)
{
    BOARD_OF(h, MIG);
    if (!card->mig_instances && !odd(card, MIG))
        return NOT_SUPPORTED;
    *current = *pending = (unsigned)number(card, MIG, 1);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(handle h, unsigned *count)
{
    BOARD_OF(h, MIG);
    *count = (unsigned)number(card, MIG, card->mig_instances ? 7 : 0);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(handle h, unsigned index, handle *instance)
{
    BOARD_OF(h, MIG);
    if (index >= card->mig_instances)
        return NOT_FOUND;
    *instance = handle_of(card, index + 1);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle h, handle *board)
{
    CARD_OF(h, ANY);
    if (!instance_of(h))
        return INVALID_ARGUMENT;
    *board = handle_of(card, 0);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetVirtualizationMode(handle h, unsigned *mode)
{
    BOARD_OF(h, VIRTUALIZATION);
    *mode = (unsigned)number(card, VIRTUALIZATION, card->virtualization);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(
    handle h, unsigned *count, process_info *infos)
{
    CARD_OF(h, PROCESSES);
    unsigned room = *count;
    *count = (unsigned)number(card, PROCESSES, card->processes);
    if (*count == 0)
        return SUCCESS;
    if (!infos || room < *count)
        return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++)
        infos[i] = (process_info){card->pids[i % PROCESS_SLOTS], 0, 0xFFFFFFFFu, 0xFFFFFFFFu};
    return SUCCESS;
}

EXPORT int nvmlDeviceGetPciInfo_v3(handle h, pci_info *info)
{
    CARD_OF(h, PCI);
    unsigned bus = (unsigned)(card - card_at(0)) + 1;
    memset(info, 0, sizeof *info);
    info->bus = bus;
    info->pci_device = 0x233010de;
    char known[32];
    snprintf(known, sizeof known, "%08X:%02X:00.0", 0, bus);
    tell(info->bus_id, sizeof info->bus_id, card, PCI, known);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, handle *found)
{
    if (!file)
        return UNINITIALIZED;
    for (unsigned i = 0; i < file->devices; i++) {
        char known[32];
        snprintf(known, sizeof known, "%08X:%02X:00.0", 0, i + 1);
        if (!strcmp(known, bus_id)) {
            *found = handle_of(card_at(i), 0);
            return trouble(card_at(i), HANDLE);
        }
    }
    return NOT_FOUND;
}
