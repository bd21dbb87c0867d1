/* A synthetic libnvidia-ml.so.1: what autotune asks of NVML, for two H100 behind an NVSwitch that exist nowhere.
   tests/machine/nvml_conformance.py compiles it, and says the same of them in Python (MACHINE). The second GPU does not
   tell its utilisation; two processes are on it, one of unknown size. Whatever is not here pynvml reports as
   NVMLError_FunctionNotFound. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, N_GPUS = 2, N_LINKS = 18 };

typedef struct { const char *uuid, *bus_id; unsigned bus; } Gpu;
typedef const Gpu *Device;
typedef struct { char legacy[16]; unsigned domain, bus, device, device_id, subsystem_id; char bus_id[32]; } Pci;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned environment, cc_feature, dev_tools_mode; } ConfComputeState;
typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency_us;
    unsigned type, status;
    union { double d; unsigned ui; unsigned long long ull; } value;
} FieldValue;

static const Gpu gpus[N_GPUS] = {{"GPU-0", "00000000:1B:00.0", 0x1b}, {"GPU-1", "00000000:2B:00.0", 0x2b}};
static int n_open = 0;

#define READY if (!n_open) return UNINITIALIZED
#define NUMBER(name, type, number) int name(Device gpu, type *out) { READY; *out = (number); return OK; }

static int text(char *out, unsigned size, const char *what) { return snprintf(out, size, "%s", what) < (int)size ? OK : INSUFFICIENT_SIZE; }

int nvmlInitWithFlags(unsigned flags) { n_open++; return OK; }
int nvmlShutdown(void) { READY; n_open--; return OK; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { READY; return text(out, size, "580.95.05"); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { READY; *out = 13000; return OK; }
int nvmlSystemGetConfComputeState(ConfComputeState *out) { READY; memset(out, 0, sizeof *out); return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { READY; *out = N_GPUS; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *out) {
    READY;
    if (index >= N_GPUS) return INVALID;
    *out = &gpus[index];
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *out) {
    READY;
    for (int i = 0; i < N_GPUS; i++)
        if (!strcmp(gpus[i].uuid, uuid)) { *out = &gpus[i]; return OK; }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(Device gpu, char *out, unsigned size) { READY; return text(out, size, gpu->uuid); }
int nvmlDeviceGetName(Device gpu, char *out, unsigned size) { READY; return text(out, size, "NVIDIA H100 80GB HBM3"); }

static int pci(Pci *out, const char *bus_id, unsigned bus) {
    memset(out, 0, sizeof *out);
    out->bus = bus;
    return text(out->bus_id, sizeof out->bus_id, bus_id);
}
int nvmlDeviceGetPciInfo_v3(Device gpu, Pci *out) { READY; return pci(out, gpu->bus_id, gpu->bus); }

int nvmlDeviceGetMemoryInfo(Device gpu, Memory *out) {
    READY;
    out->total = 80ULL << 30, out->used = 512ULL << 20, out->free = out->total - out->used;
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(Device gpu, MemoryV2 *out) {
    READY;
    out->total = 80ULL << 30, out->used = 512ULL << 20, out->free = out->total - out->used, out->reserved = 0;
    return OK;
}

int nvmlDeviceGetUtilizationRates(Device gpu, Utilization *out) {
    READY;
    if (gpu == &gpus[1]) return NOT_SUPPORTED;
    out->gpu = 0, out->memory = 0;
    return OK;
}

NUMBER(nvmlDeviceGetPowerUsage, unsigned, 70000)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned, 700000)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, 700000)
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, 1000000)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, 1)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, 5)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, 16)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, 16)
NUMBER(nvmlDeviceGetComputeMode, unsigned, 0)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned, 1)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned, 0)
NUMBER(nvmlDeviceGetVirtualizationMode, unsigned long long, 0)

/* Kinds of clock: 1 the SMs, 2 the memory. */
int nvmlDeviceGetClockInfo(Device gpu, unsigned kind, unsigned *out) { READY; *out = kind == 2 ? 2619 : 345; return OK; }
int nvmlDeviceGetMaxClockInfo(Device gpu, unsigned kind, unsigned *out) { READY; *out = kind == 2 ? 2619 : 1980; return OK; }
int nvmlDeviceGetTemperature(Device gpu, unsigned sensor, unsigned *out) { READY; *out = 35; return OK; }
int nvmlDeviceGetCudaComputeCapability(Device gpu, int *major, int *minor) { READY; *major = 9, *minor = 0; return OK; }
int nvmlDeviceGetMigMode(Device gpu, unsigned *now, unsigned *pending) { READY; *now = *pending = 0; return OK; }
int nvmlDeviceGetTotalEccErrors(Device gpu, unsigned kind, unsigned counter, unsigned long long *out) { READY; *out = 0; return OK; }
int nvmlDeviceGetRemappedRows(Device gpu, unsigned *corr, unsigned *uncorr, unsigned *pending, unsigned *failed) {
    READY;
    *corr = *uncorr = *pending = *failed = 0;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device gpu, unsigned *count, Process *out) {
    READY;
    unsigned n = gpu == &gpus[1] ? 2 : 0, room = *count;
    *count = n;
    if (room < n) return INSUFFICIENT_SIZE;
    if (n) out[0] = (Process){.pid = 4321, .used = 20ULL << 30}, out[1] = (Process){.pid = 4322, .used = ~0ULL};
    return OK;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device gpu, unsigned *count, Process *out) { READY; *count = 0; return OK; }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Device gpu, unsigned *count, Process *out) { READY; *count = 0; return OK; }

/* 230 is the recovery action. */
int nvmlDeviceGetFieldValues(Device gpu, int n, FieldValue *out) {
    READY;
    for (int i = 0; i < n; i++) out[i].status = out[i].field == 230 ? OK : NOT_SUPPORTED, out[i].value.ull = 0;
    return OK;
}

int nvmlDeviceGetNvLinkState(Device gpu, unsigned link, unsigned *out) {
    READY;
    if (link >= N_LINKS) return INVALID;
    *out = 1;
    return OK;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device gpu, unsigned link, Pci *out) {
    READY;
    return link >= N_LINKS ? INVALID : pci(out, "00000000:C0:00.0", 0xc0);
}
int nvmlDeviceGetNvLinkRemoteDeviceType(Device gpu, unsigned link, unsigned *out) {
    READY;
    if (link >= N_LINKS) return INVALID;
    *out = 2; /* a switch */
    return OK;
}
int nvmlDeviceGetTopologyCommonAncestor(Device a, Device b, unsigned *out) {
    READY;
    *out = 40;
    return OK;
}
int nvmlDeviceGetP2PStatus(Device a, Device b, unsigned index, unsigned *out) {
    READY;
    *out = 0;
    return OK;
}
