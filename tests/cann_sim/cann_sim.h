// What only the simulated runtime has, exported by libascendcl.so: closures on streams, questions
// about device memory, counters, faults. All that a toolkit has too is declared in the acl headers.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// A work item: returns 0 or an ACL error code, and throws nothing.
typedef int (*cannsim_call)(void* arg);
typedef void (*cannsim_drop)(void* arg);

// Enqueues call(arg) on an aclrtStream: outside a capture it runs once, in the order of the stream;
// inside one it is recorded and runs at every replay. drop(arg), which may be null, is called once,
// when the item can never run again. Returns 0 or an ACL error code.
int cannsim_launch(void* stream, const char* name, cannsim_call call, void* arg, cannsim_drop drop);

// 1 and the live device allocation that holds p, or 0.
int cannsim_region(const void* p, const void** base, size_t* size);
// The device whose memory holds all of [p, p + size), or -1.
int cannsim_device_of(const void* p, size_t size);
int cannsim_stream_device(void* stream);

// What aclGetRecentErrMsg() returns on this thread.
void cannsim_set_error(const char* text);

// The next `times` occurrences of `what`, after `after` more, fail with `code` (0: the default).
void cannsim_inject(const char* what, int after, int times, int code);
// Ends the state after a failure, in which every wait and copy fails, and updates that a failure
// left open; forgets faults to come.
void cannsim_revive(void);
// Memory of each device, in bytes.
void cannsim_set_memory(uint64_t bytes);

typedef struct cannsim_stats {
    uint64_t bytes_now, bytes_peak, mallocs, frees;  // device memory
    uint64_t launches;                               // work items executed
    uint64_t captured, replays, updates;             // of graphs
    uint64_t syncs;          // host waits: stream, device, event, blocking copy
    uint64_t h2d, d2h, d2d;  // bytes copied
    uint64_t streams;        // stream resources taken
} cannsim_stats;
// Of one device, or of all together (-1).
void cannsim_get_stats(int device, cannsim_stats* out);
void cannsim_reset_peak(void);

// How often the named work item ran: aclnnAdd, memcpy_h2d, score_head_float16 ...
uint64_t cannsim_count(const char* name);
// All of them as lines "name count"; returns the length of the text, which may exceed `size`.
size_t cannsim_counts(char* text, size_t size);
void cannsim_reset_counts(void);

#ifdef __cplusplus
}
#endif
