/* Stands in for NVML in tests: compiled by them, and really loaded. What it is told is kept in files
   below STATE, so that it outlives the process that told it, as in a driver. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
typedef unsigned u; typedef unsigned long long ull;
struct utilization { u gpu, memory; };
struct memory { u version; ull total, reserved, free, used; };
struct process { u pid; ull bytes; u gpu_instance, compute_instance; };
struct sample { u pid; ull at; u sm, mem, enc, dec; };
#ifndef STATE
#define STATE "/nonexistent"
#endif
static int gpus[2]; static int instances[2];
static long number(void *d) { return d == &gpus[1] || d == &instances[1]; }
static FILE *file(void *d, const char *name, const char *how);
static u stored(void *d, const char *name, u otherwise);
static int is_instance(void *d) { return d == &instances[0] || d == &instances[1]; }
#define CHECK(d) do { if (number(d) && access(LOST, F_OK) == 0) return 15; if (MUTE) return 3; } while (0)
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *v, u n) { snprintf(v, n, "550.\x1b[2J1"); return 0; }
int nvmlDeviceGetCount_v2(u *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(u i, void **d) { *d = &gpus[i]; return 0; }
int nvmlDeviceGetName(void *d, char *s, u n) { CHECK(d); snprintf(s, n, "Fake %ld", number(d)); return 0; }
int nvmlDeviceGetUUID(void *d, char *s, u n) { CHECK(d); snprintf(s, n, "GPU-%ld", number(d)); return 0; }
int nvmlDeviceGetUtilizationRates(void *d, struct utilization *r) { CHECK(d); r->gpu = 80; r->memory = 40; return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *d, struct memory *m) { CHECK(d); m->total = 1000; m->reserved = 0; m->free = 400; m->used = 600; return 0; }
int nvmlDeviceGetPowerUsage(void *d, u *mw) { CHECK(d); while (access(HANG, F_OK) == 0) usleep(1000); *mw = 200000; return 0; }
int nvmlDeviceGetClockInfo(void *d, u kind, u *mhz) { CHECK(d); *mhz = number(d) ? 500 : 1500; return 0; }
int nvmlDeviceGetMaxClockInfo(void *d, u kind, u *mhz) { CHECK(d); *mhz = 2000; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, ull *r) { CHECK(d); *r = number(d) ? 4 : 1; return 0; }
int nvmlDeviceGetMigMode(void *d, u *now, u *next) { CHECK(d); *now = *next = SPLIT; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *d, u *n) { CHECK(d); *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, u i, void **m) { CHECK(d); if (i > 0) return 6; *m = &instances[number(d)]; return 0; }
static int answer(struct process *from, u have, u *n, struct process *to) {
  if (*n < have) { *n = have; return have ? 7 : 0; }
  if (have) memcpy(to, from, have * sizeof *from);
  *n = have; return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, u *n, struct process *p) {
  CHECK(d);
  /* Split, the GPU as a whole tells only a privileged caller; its instances tell everybody. */
  if (SPLIT && !is_instance(d)) return 4;
  FILE *f = number(d) ? 0 : file(d, "pids", "r");
  if (f) {
    struct process told[8] = { { 0 } }; u have = 0;
    while (have < 8 && fscanf(f, "%u", &told[have].pid) == 1) have++;
    fclose(f); return answer(told, have, n, p);
  }
  struct process both[2] = { { 101, 100, 0, 0 }, { 102, 300, 0, 0 } };
  return number(d) ? answer(both + 1, 1, n, p) : answer(both, 2, n, p);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *d, u *n, struct process *p) {
  CHECK(d); u refused = stored(d, "graphics", 0);
  return refused ? (int)refused : answer(0, 0, n, p);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *d, u *n, struct process *p) {
  CHECK(d); struct process client = { 101, 100, 0, 0 };
  u refused = stored(d, "mps", 0); if (refused) return (int)refused;
  return answer(&client, SHARED && !number(d), n, p);
}
int nvmlDeviceGetProcessUtilization(void *d, struct sample *s, u *n, ull since) {
  static ull at = 1000;
  CHECK(d);
  if (SPLIT) return 3;
  if (!s) { *n = 3; return 7; }
  at += 10;
  struct sample first[3] = { { 101, at, 20, 10, 4, 0 }, { 101, at + 1, 40, 30, 0, 2 }, { 102, at, 90, 50, 0, 0 } };
  if (SHARED && !number(d)) first[2].pid = 103;
  memcpy(s, first, sizeof first);
  if (number(d)) { s[0] = first[2]; *n = 1; } else *n = 3;
  return 0;
}
static FILE *file(void *d, const char *name, const char *how) {
  char path[512]; snprintf(path, sizeof path, "%s/%s%ld", STATE, name, number(d));
  return fopen(path, how);
}
static u stored(void *d, const char *name, u otherwise) {
  FILE *f = file(d, name, "r"); u value = otherwise;
  if (f) { if (fscanf(f, "%u", &value) != 1) value = otherwise; fclose(f); }
  return value;
}
static int store(void *d, const char *name, u value) {
  FILE *f = file(d, name, "w"); if (!f) return 999;
  fprintf(f, "%u\n", value); fclose(f); return 0;
}
static void hang(void) { while (access(HANG, F_OK) == 0) usleep(1000); }
int nvmlDeviceGetMinorNumber(void *d, u *n) { CHECK(d); *n = number(d); return 0; }
int nvmlDeviceGetPowerManagementLimit(void *d, u *mw) { CHECK(d); hang(); *mw = stored(d, "power", 250500); return 0; }
int nvmlDeviceGetPowerManagementDefaultLimit(void *d, u *mw) { CHECK(d); *mw = 300000; return 0; }
int nvmlDeviceGetPowerManagementLimitConstraints(void *d, u *least, u *most) { CHECK(d); *least = 100000; *most = 350000; return 0; }
int nvmlDeviceSetPowerManagementLimit(void *d, u mw) {
  CHECK(d); hang();
  return mw < 100000 || mw > 350000 ? 2 : store(d, "power", mw);
}
int nvmlDeviceSetGpuLockedClocks(void *d, u least, u most) {
  CHECK(d); hang();
  return most > 2000 || least > most ? 2 : store(d, "floor", least);
}
int nvmlDeviceResetGpuLockedClocks(void *d) { CHECK(d); hang(); return store(d, "floor", 0); }
