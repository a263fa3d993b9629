/* A simulated libnvidia-ml.so.1 whose truth is known: entry points of NVML that answer from a script.
 *
 * The script (environment variable SIM_NVML_SCRIPT; written by tests/sim_nvml/simulator.py) holds one word and its
 * values per line. All times are seconds after `origin`, a reading of CLOCK_MONOTONIC. A line `device UUID`
 * starts a device; the lines after it describe it. Struct layouts follow NVIDIA's nvml.h, version 12.
 */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SUCCESS 0
#define ERROR_INVALID_ARGUMENT 2
#define ERROR_NOT_SUPPORTED 3
#define ERROR_NOT_FOUND 6
#define ERROR_INSUFFICIENT_SIZE 7
#define ERROR_DRIVER_NOT_LOADED 9
#define ERROR_GPU_IS_LOST 15

#define MAX_DEVICES 8
#define MAX_POINTS 256
#define MAX_ITEMS 32

typedef struct { double t, y; } Point;
typedef struct { Point points[MAX_POINTS]; int count; double period; } Curve; /* piecewise linear, held outside */
typedef struct { double from, to; unsigned value; } Interval;
typedef struct { char function[64]; int call, code, calls; double from; } Fault;

typedef struct {
    char uuid[80], name[96];
    int major, minor;
    Curve power, temperature, used;
    double counter_step, counter_lag, counter_reset;   /* step 0: no counter; reset < 0: never */
    double instant_update, instant_window;             /* update 0: field 186 not supported */
    double average_update, average_window;             /* update 0: field 185 not supported */
    int usage_is_average;                              /* what nvmlDeviceGetPowerUsage means; -1: not supported */
    double gain;                                       /* of the power sensors, not of the counter */
    double limit_w, total_bytes, reserved_bytes;
    unsigned sm_mhz, memory_mhz;
    Interval throttle[MAX_ITEMS], process[MAX_ITEMS];
    int throttles, processes, mig;
    double lost_at;                                    /* < 0: never */
    char lost_when[256];                               /* lost once this file exists; empty: never */
    Fault refused[MAX_ITEMS];                          /* functions that fail on this device alone */
    int refusals;
} Device;

static Device devices[MAX_DEVICES];
static int device_count;
static Fault faults[MAX_ITEMS];
static int fault_count, loaded;
static double origin;
static char driver_version[80] = "999.0 (simulated)";

typedef struct { uint32_t field, scope; int64_t timestamp, latency; uint32_t type, result; union { double d; uint32_t ui; uint64_t ull; } value; } FieldValue;
typedef struct { uint32_t pid; uint64_t used; uint32_t gpu, compute; } ProcessInfo;
typedef struct { uint32_t version; uint64_t total, reserved, free, used; } MemoryV2;
typedef struct { uint64_t total, free, used; } MemoryV1;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec - origin;
}

static double curve_at(const Curve *c, double t) {
    if (c->period > 0) t = t < 0 ? 0 : fmod(t, c->period);
    if (c->count == 0) return 0;
    double y = c->points[0].y;
    for (int i = 0; i < c->count && c->points[i].t <= t; i++) {
        y = c->points[i].y;
        if (i + 1 < c->count && c->points[i + 1].t > t) {
            double share = (t - c->points[i].t) / (c->points[i + 1].t - c->points[i].t);
            y += share * (c->points[i + 1].y - c->points[i].y);
        }
    }
    return y;
}

/* integral from 0 to t of the curve itself, without its period */
static double area_once(const Curve *c, double t) {
    double sum = 0, at = 0;
    for (int i = 0; i + 1 < c->count && at < t; i++) {
        double a = c->points[i].t, b = c->points[i + 1].t;
        if (b <= a) continue;
        double end = b < t ? b : t;
        double slope = (c->points[i + 1].y - c->points[i].y) / (b - a);
        sum += (end - a) * (c->points[i].y + slope * (end - a) / 2);
        at = end;
    }
    double last = c->count ? c->points[c->count - 1].t : 0;
    if (t > last && c->count) sum += (t - last) * c->points[c->count - 1].y;
    return sum;
}

static double area(const Curve *c, double t) {
    if (t <= 0) return c->count ? t * c->points[0].y : 0; /* held before the origin */
    if (c->period <= 0) return area_once(c, t);
    double whole = floor(t / c->period);
    return whole * area_once(c, c->period) + area_once(c, t - whole * c->period);
}

static double sensor_w(const Device *d, double update, double window) {
    double u = floor(now() / update) * update;
    return d->gain * (area(&d->power, u) - area(&d->power, u - window)) / window;
}

static void read_curve(Curve *c, char *text) {
    for (char *word = strtok(text, " "); word && c->count < MAX_POINTS; word = strtok(NULL, " "))
        if (sscanf(word, "%lf:%lf", &c->points[c->count].t, &c->points[c->count].y) == 2) c->count++;
}

static void new_device(const char *uuid) {
    Device *d = &devices[device_count++];
    memset(d, 0, sizeof *d);
    snprintf(d->uuid, sizeof d->uuid, "%s", uuid);
    snprintf(d->name, sizeof d->name, "Simulated GPU");
    d->major = 9;
    d->gain = 1;
    d->counter_reset = d->lost_at = -1;
    d->limit_w = 700;
    d->total_bytes = 80e9;
    d->sm_mhz = 1980;
    d->memory_mhz = 2619;
}

static void read_device_line(Device *d, const char *word, char *rest) {
    if (!strcmp(word, "name")) snprintf(d->name, sizeof d->name, "%s", rest);
    else if (!strcmp(word, "capability")) sscanf(rest, "%d %d", &d->major, &d->minor);
    else if (!strcmp(word, "power")) read_curve(&d->power, rest);
    else if (!strcmp(word, "power_period")) d->power.period = atof(rest);
    else if (!strcmp(word, "temperature")) read_curve(&d->temperature, rest);
    else if (!strcmp(word, "used")) read_curve(&d->used, rest);
    else if (!strcmp(word, "counter")) sscanf(rest, "%lf %lf", &d->counter_step, &d->counter_lag);
    else if (!strcmp(word, "counter_reset")) d->counter_reset = atof(rest);
    else if (!strcmp(word, "instant")) sscanf(rest, "%lf %lf", &d->instant_update, &d->instant_window);
    else if (!strcmp(word, "average")) sscanf(rest, "%lf %lf", &d->average_update, &d->average_window);
    else if (!strcmp(word, "usage")) d->usage_is_average = atoi(rest);
    else if (!strcmp(word, "gain")) d->gain = atof(rest);
    else if (!strcmp(word, "limit_w")) d->limit_w = atof(rest);
    else if (!strcmp(word, "memory")) sscanf(rest, "%lf %lf", &d->total_bytes, &d->reserved_bytes);
    else if (!strcmp(word, "clocks")) sscanf(rest, "%u %u", &d->sm_mhz, &d->memory_mhz);
    else if (!strcmp(word, "mig")) d->mig = atoi(rest);
    else if (!strcmp(word, "lost_at")) d->lost_at = atof(rest);
    else if (!strcmp(word, "lost_when")) snprintf(d->lost_when, sizeof d->lost_when, "%s", rest);
    else if (!strcmp(word, "refuse") && d->refusals < MAX_ITEMS) {
        Fault *f = &d->refused[d->refusals++];
        sscanf(rest, "%63s %d", f->function, &f->code);
    }
    else if (!strcmp(word, "throttle") && d->throttles < MAX_ITEMS) {
        Interval *i = &d->throttle[d->throttles++];
        sscanf(rest, "%lf %lf %u", &i->from, &i->to, &i->value);
    } else if (!strcmp(word, "process") && d->processes < MAX_ITEMS) {
        Interval *i = &d->process[d->processes++]; /* pid 0 stands for the calling process */
        sscanf(rest, "%lf %lf %u", &i->from, &i->to, &i->value);
    } else {
        fprintf(stderr, "nvml_sim: unknown line '%s'\n", word);
        abort();
    }
}

static int load(void) {
    char line[16384], word[64];
    const char *path = getenv("SIM_NVML_SCRIPT");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return ERROR_DRIVER_NOT_LOADED;
    while (fgets(line, sizeof line, file)) {
        int used = 0;
        line[strcspn(line, "\n")] = 0;
        if (line[0] == '#' || sscanf(line, "%63s %n", word, &used) != 1) continue;
        char *rest = line + used;
        if (!strcmp(word, "origin")) origin = atof(rest);
        else if (!strcmp(word, "driver")) snprintf(driver_version, sizeof driver_version, "%s", rest);
        else if (!strcmp(word, "error") && fault_count < MAX_ITEMS) {
            Fault *f = &faults[fault_count++];
            sscanf(rest, "%63s %d %d %lf", f->function, &f->call, &f->code, &f->from);
        } else if (!strcmp(word, "device") && device_count < MAX_DEVICES) new_device(rest);
        else if (device_count) read_device_line(&devices[device_count - 1], word, rest);
    }
    fclose(file);
    loaded = 1;
    return SUCCESS;
}

/* the scripted fault of a function: from its n-th call on, and from a time on if one is given */
static int fault(const char *function) {
    for (int i = 0; i < fault_count; i++)
        if (!strcmp(faults[i].function, function) && ++faults[i].calls >= faults[i].call && now() >= faults[i].from) return faults[i].code;
    return SUCCESS;
}

static int check(const char *function, const Device *d) {
    if (!d) return ERROR_INVALID_ARGUMENT;
    if (d->lost_at >= 0 && now() >= d->lost_at) return ERROR_GPU_IS_LOST;
    if (d->lost_when[0] && access(d->lost_when, F_OK) == 0) return ERROR_GPU_IS_LOST;
    for (int i = 0; i < d->refusals; i++)
        if (!strcmp(d->refused[i].function, function)) return d->refused[i].code;
    return fault(function);
}

#define ENTER(d) do { int code_ = check(__func__, d); if (code_) return code_; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = loaded ? SUCCESS : load();
    return code ? code : fault("nvmlInit");
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case 0: return "Success";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 6: return "Not Found";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "%s", driver_version); return fault(__func__); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return fault(__func__); }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)device_count; return fault(__func__); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
    int code = fault(__func__);
    if (code) return code;
    if (index >= (unsigned)device_count) return ERROR_INVALID_ARGUMENT;
    *out = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **out) {
    int code = fault(__func__);
    if (code) return code;
    for (int i = 0; i < device_count; i++)
        if (!strcmp(devices[i].uuid, uuid)) { *out = &devices[i]; return SUCCESS; }
    return ERROR_NOT_FOUND;
}

int nvmlDeviceGetName(Device *d, char *text, unsigned size) { ENTER(d); snprintf(text, size, "%s", d->name); return SUCCESS; }
int nvmlDeviceGetUUID(Device *d, char *text, unsigned size) { ENTER(d); snprintf(text, size, "%s", d->uuid); return SUCCESS; }
int nvmlDeviceGetIndex(Device *d, unsigned *index) { ENTER(d); *index = (unsigned)(d - devices); return SUCCESS; }
int nvmlDeviceGetCudaComputeCapability(Device *d, int *major, int *minor) { ENTER(d); *major = d->major; *minor = d->minor; return SUCCESS; }

int nvmlDeviceGetTotalEnergyConsumption(Device *d, unsigned long long *millijoules) {
    ENTER(d);
    if (d->counter_step <= 0) return ERROR_NOT_SUPPORTED;
    double t = floor(now() / d->counter_step) * d->counter_step - d->counter_lag;
    double joules = 1e6 + area(&d->power, t); /* the driver has been loaded for a while */
    if (d->counter_reset >= 0 && t >= d->counter_reset) joules = area(&d->power, t) - area(&d->power, d->counter_reset);
    *millijoules = (unsigned long long)(joules * 1e3);
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device *d, unsigned *milliwatts) {
    ENTER(d);
    double update = d->usage_is_average ? d->average_update : d->instant_update;
    double window = d->usage_is_average ? d->average_window : d->instant_window;
    if (d->usage_is_average < 0 || update <= 0) return ERROR_NOT_SUPPORTED;
    *milliwatts = (unsigned)(sensor_w(d, update, window) * 1e3 + 0.5);
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(Device *d, int count, FieldValue *values) {
    ENTER(d);
    for (int i = 0; i < count; i++) {
        FieldValue *v = &values[i];
        v->timestamp = (int64_t)((now() + origin) * 1e6);
        v->type = 1; /* unsigned int */
        v->result = SUCCESS;
        if (v->field == 186 && d->instant_update > 0) v->value.ui = (uint32_t)(sensor_w(d, d->instant_update, d->instant_window) * 1e3 + 0.5);
        else if (v->field == 185 && d->average_update > 0) v->value.ui = (uint32_t)(sensor_w(d, d->average_update, d->average_window) * 1e3 + 0.5);
        else if (v->field == 83 && d->counter_step > 0) {
            unsigned long long energy = 0;
            v->result = (uint32_t)nvmlDeviceGetTotalEnergyConsumption(d, &energy);
            v->type = 3; /* unsigned long long */
            v->value.ull = energy;
        } else v->result = ERROR_NOT_SUPPORTED;
    }
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device *d, MemoryV1 *m) {
    ENTER(d);
    m->total = (uint64_t)d->total_bytes;
    m->used = (uint64_t)(curve_at(&d->used, now()) + d->reserved_bytes);
    m->free = m->total - m->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device *d, MemoryV2 *m) {
    ENTER(d);
    m->total = (uint64_t)d->total_bytes;
    m->reserved = (uint64_t)d->reserved_bytes;
    m->used = (uint64_t)curve_at(&d->used, now());
    m->free = m->total - m->reserved - m->used;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *celsius) {
    ENTER(d);
    if (sensor != 0 || d->temperature.count == 0) return ERROR_NOT_SUPPORTED;
    *celsius = (unsigned)(curve_at(&d->temperature, now()) + 0.5);
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Device *d, int type, unsigned *mhz) { ENTER(d); *mhz = type == 2 ? d->memory_mhz : d->sm_mhz; return SUCCESS; }
int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *milliwatts) { ENTER(d); *milliwatts = (unsigned)(d->limit_w * 1e3); return SUCCESS; }
int nvmlDeviceGetPowerManagementLimit(Device *d, unsigned *milliwatts) { ENTER(d); *milliwatts = (unsigned)(d->limit_w * 1e3); return SUCCESS; }
int nvmlDeviceGetMigMode(Device *d, unsigned *current, unsigned *pending) { ENTER(d); *current = *pending = (unsigned)d->mig; return SUCCESS; }

typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(Device *d, Utilization *u) { ENTER(d); if (d->mig) return ERROR_NOT_SUPPORTED; u->gpu = 100; u->memory = 50; return SUCCESS; }

int nvmlDeviceGetCurrentClocksEventReasons(Device *d, unsigned long long *bits) {
    ENTER(d);
    *bits = 0;
    for (int i = 0; i < d->throttles; i++)
        if (now() >= d->throttle[i].from && now() < d->throttle[i].to) *bits |= d->throttle[i].value;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *bits) { return nvmlDeviceGetCurrentClocksEventReasons(d, bits); }

int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, ProcessInfo *infos) {
    ENTER(d);
    unsigned room = *count, found = 0;
    for (int i = 0; i < d->processes; i++) {
        if (now() < d->process[i].from || now() >= d->process[i].to) continue;
        if (infos && found < room) {
            infos[found].pid = d->process[i].value ? d->process[i].value : (uint32_t)getpid();
            infos[found].used = 1u << 30;
            infos[found].gpu = infos[found].compute = UINT32_MAX;
        }
        found++;
    }
    *count = found;
    return found > room ? ERROR_INSUFFICIENT_SIZE : SUCCESS;
}
