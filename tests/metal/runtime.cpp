// Executes one kernel over its grid, and watches every access to memory. Compiled once per process by ../compiler.py.
//
// Kernels are compiled with clang's -fsanitize=thread, which puts a call before each access to memory that other
// threads could see. Those calls end here instead of in ThreadSanitizer: an access outside of the buffers that were
// bound, misaligned, of something never written, or in conflict with another thread's is a fault. A fault ends the
// dispatch before the access happens. Threads of a threadgroup are fibers: each runs until a barrier or its end.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
typedef unsigned uint3 __attribute__((ext_vector_type(3)));

extern "C" {
void *mmap(void *, u64, int, int, int, long);
int munmap(void *, u64);
int mprotect(void *, u64, int);
void *memset(void *, int, u64);
void *memcpy(void *, const void *, u64);
void *memmove(void *, const void *, u64);
}

namespace {

// Who touched an element last, and in which interval between barriers. Within one, two threads must not meet.
struct Cell { u32 writer, written_in, reader, read_in; };
const u32 SEVERAL = ~0u;

struct Region {      // as ctypes has it in ../runtime.py
  u8 *base;          // what the kernel may touch
  u64 size;
  u8 *written;       // one byte for each byte: whether anything was ever stored there
  Cell *cells;       // one for each element
  u32 element;       // bytes
  u32 shared;        // 1: threadgroup memory, where a barrier orders accesses
};

enum Kind { NONE, OUT_OF_BOUNDS, MISALIGNED, UNINITIALISED, RACE, BARRIER, SIMDGROUP, REGISTERS, ARRAYS };

struct Fault {
  u32 kind, region, size, is_write, other, line, other_line;
  u32 group[3], thread[3];
  long offset;
};

enum State { READY, AT_BARRIER, AT_MULTIPLY, DONE };
struct Thread {
  void *stack_pointer;
  u8 *stack;
  uint3 position;
  u32 state, line, multiplies;
};

const u64 STACK = 256 << 10, PAGE = 4096, REDZONE = 16 << 10, ARENA = 1 << 20;
const u32 MAX_THREADS = 1024, MAX_REGIONS = 64, MAX_ARRAYS = 16, LANES = 32;
const int READ_WRITE = 3, PRIVATE_ANONYMOUS = 0x22, NO_RESERVE = 0x4000;

Region regions[MAX_REGIONS];
u32 region_count, array_count, last_region;
Thread threads[MAX_THREADS];
u32 thread_count, order_of[MAX_THREADS];
Thread *current;
u32 current_index, current_id;
u8 *stack_low;
u32 interval;        // counts barriers and threadgroups, through all dispatches: no two intervals share a number
u64 arena_used;
u8 *arena, *arena_written;
Cell *arena_cells;
void *scheduler;
Fault fault;
uint3 group;
float operands[MAX_THREADS][2][4];

typedef void (*Entry)(void **, uint3, uint3);
Entry entry;
void **arguments;

__attribute__((naked)) void swap(void ** /*save*/, void * /*load*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n retq");
}

void pause() { swap(&current->stack_pointer, scheduler); }

[[noreturn]] void fail(u32 kind, u32 region, long offset, u32 size, bool is_write, u32 other) {
  fault.kind = kind, fault.region = region, fault.offset = offset, fault.size = size, fault.is_write = is_write;
  fault.other = other;
  for (int i = 0; i < 3; i++) fault.group[i] = group[i], fault.thread[i] = current->position[i];
  pause();  // for ever: the scheduler sees the fault and gives the dispatch up
  __builtin_unreachable();
}

[[noreturn]] void outside(u8 *at, u32 size, bool is_write) {
  u32 nearest = 0;
  u64 distance = ~0ul;
  for (u32 i = 0; i < region_count; i++) {
    u64 d = at < regions[i].base ? regions[i].base - at : at - regions[i].base;
    if (d < distance) nearest = i, distance = d;
  }
  fail(OUT_OF_BOUNDS, nearest, at - regions[nearest].base, size, is_write, 0);
}

inline bool within(const Region &r, u8 *at, u32 size) { return at >= r.base && at + size <= r.base + r.size; }

inline void touch(Region &r, u32 index, u8 *at, u32 size, bool is_write) {
  u64 offset = at - r.base;
  u32 now = r.shared ? interval : 1,  // nothing orders accesses to a buffer within one dispatch
      me = r.shared ? current_index + 1 : current_id;
  if (!is_write)
    for (u32 i = 0; i < size; i++)
      if (!r.written[offset + i]) fail(UNINITIALISED, index, offset, size, is_write, 0);
  for (u64 e = offset / r.element; e <= (offset + size - 1) / r.element; e++) {
    Cell &c = r.cells[e];
    if (c.written_in == now && c.writer != me) fail(RACE, index, offset, size, is_write, c.writer);
    if (is_write) {
      if (c.read_in == now && c.reader != me) fail(RACE, index, offset, size, is_write, c.reader);
      c.writer = me, c.written_in = now;
    } else {
      c.reader = c.read_in == now && c.reader != me ? SEVERAL : me, c.read_in = now;
    }
  }
  if (is_write) memset(r.written + offset, 1, size);
}

inline void access(void *address, u32 size, bool is_write, bool aligned) {
  u8 *at = (u8 *)address;
  if (at >= stack_low && at < stack_low + STACK) return;  // the thread's own
  u32 index = last_region;
  if (!within(regions[index], at, size)) {
    for (index = 0; index < region_count && !within(regions[index], at, size);) index++;
    if (index == region_count) outside(at, size, is_write);
    last_region = index;
  }
  if (aligned && (u64)at % size) fail(MISALIGNED, index, at - regions[index].base, size, is_write, 0);
  touch(regions[index], index, at, size, is_write);
}

void run_thread() {
  entry(arguments, group, current->position);
  current->state = DONE;
  pause();
}

void prepare(Thread &t) {
  void **top = (void **)(t.stack + STACK - 64);  // 16-byte aligned; a function finds its return address below that
  *--top = 0;
  *--top = (void *)run_thread;
  for (int i = 0; i < 6; i++) *--top = 0;
  t.stack_pointer = top;
  t.state = READY, t.multiplies = 0;
}

bool simdgroup_meets(u32 first) {
  u32 line = threads[first].line;
  for (u32 i = first; i < first + LANES; i++)
    if (i >= thread_count || threads[i].state != AT_MULTIPLY || threads[i].line != line) return false;
  return true;
}

// After every thread has gone as far as it can alone: lets go on who may, false if nobody may.
bool meet() {
  bool any = false;
  for (u32 first = 0; first < thread_count; first += LANES)
    if (threads[first].state == AT_MULTIPLY && simdgroup_meets(first)) {
      for (u32 i = first; i < first + LANES; i++) threads[i].state = READY;
      any = true;
    }
  if (any) return true;
  for (u32 i = 0; i < thread_count; i++)
    if (threads[i].state != AT_BARRIER || threads[i].line != threads[0].line) return false;
  for (u32 i = 0; i < thread_count; i++) threads[i].state = READY;
  interval++;
  return true;
}

void diverged() {
  u32 waiting = 0, other = 0;
  while (threads[waiting].state == DONE) waiting++;
  for (u32 i = 0; i < thread_count; i++)
    if (threads[i].state != threads[waiting].state || threads[i].line != threads[waiting].line) other = i;
  fault.kind = threads[waiting].state == AT_BARRIER ? BARRIER : SIMDGROUP;
  fault.line = threads[waiting].line;
  fault.other_line = threads[other].state == DONE ? 0 : threads[other].line;
  fault.other = other + 1;
  for (int i = 0; i < 3; i++) fault.group[i] = group[i], fault.thread[i] = threads[waiting].position[i];
}

void run_group(u32 group_index) {
  interval++;
  for (u32 i = region_count - array_count; i < region_count; i++) {  // memory of the threadgroup before holds nothing
    memset(regions[i].base, 0xff, regions[i].size);
    memset(regions[i].written, 0, regions[i].size);
  }
  for (u32 i = 0; i < thread_count; i++) prepare(threads[i]);
  while (!fault.kind) {
    u32 done = 0;
    for (u32 k = 0; k < thread_count && !fault.kind; k++) {
      current_index = order_of[k], current = &threads[current_index];
      if (current->state != READY) continue;
      stack_low = current->stack;
      current_id = group_index * thread_count + current_index + 1;
      swap(&scheduler, current->stack_pointer);
    }
    for (u32 i = 0; i < thread_count; i++) done += threads[i].state == DONE;
    if (fault.kind || done == thread_count) return;
    if (!meet()) return diverged();
  }
}

void shuffle(u32 order, u32 count) {  // 0: as numbered, 1: reversed, else at random
  u64 seed = order;
  for (u32 i = 0; i < count; i++) order_of[i] = order == 1 ? count - 1 - i : i;
  for (u32 i = count - 1; order > 1 && i > 0; i--) {
    seed = seed * 6364136223846793005ul + 1442695040888963407ul;
    u32 j = (seed >> 33) % (i + 1), other = order_of[j];
    order_of[j] = order_of[i], order_of[i] = other;
  }
}

void *pages(u64 size) { return mmap(0, size, READ_WRITE, PRIVATE_ANONYMOUS | NO_RESERVE, -1, 0); }

}  // namespace

extern "C" {

// A buffer with pages on both sides that nobody may touch.
void *stand_in_allocate(u64 size) {
  u64 whole = (size + PAGE - 1) / PAGE * PAGE;
  u8 *base = (u8 *)pages(whole + 2 * ARENA);
  if (base == (u8 *)-1) return 0;
  mprotect(base, ARENA, 0);
  mprotect(base + ARENA + whole, ARENA, 0);
  return base + ARENA;
}

void stand_in_free(void *base, u64 size) {
  munmap((u8 *)base - ARENA, (size + PAGE - 1) / PAGE * PAGE + 2 * ARENA);
}

const Fault *stand_in_run(Entry function, void **values, const Region *bound, u32 count, const u32 *grid,
                          const u32 *local, u32 order) {
  if (!arena) {
    arena = (u8 *)pages(ARENA), arena_written = (u8 *)pages(ARENA);
    arena_cells = (Cell *)pages(ARENA * sizeof(Cell));
  }
  fault = Fault{};
  entry = function, arguments = values;
  memcpy(regions, bound, count * sizeof(Region));
  region_count = count, array_count = 0, last_region = 0, arena_used = REDZONE;
  for (u32 i = 0; i < count; i++)
    regions[i].cells = (Cell *)pages((bound[i].size / bound[i].element + 1) * sizeof(Cell));
  thread_count = local[0] * local[1] * local[2];
  for (u32 i = 0; i < thread_count; i++) {
    threads[i].position = uint3{i % local[0], i / local[0] % local[1], i / local[0] / local[1]};
    if (!threads[i].stack) {
      u8 *low = (u8 *)pages(STACK + PAGE);
      mprotect(low, PAGE, 0);
      threads[i].stack = low + PAGE;
    }
  }
  shuffle(order, thread_count);
  u32 groups = grid[0] * grid[1] * grid[2];
  for (u32 k = 0; k < groups && !fault.kind; k++) {
    u32 g = order == 1 ? groups - 1 - k : k;
    group = uint3{g % grid[0], g / grid[0] % grid[1], g / grid[0] / grid[1]};
    run_group(g);
  }
  for (u32 i = 0; i < count; i++) munmap(regions[i].cells, (bound[i].size / bound[i].element + 1) * sizeof(Cell));
  return &fault;
}

void *stand_in_threadgroup(int index, u64 size, int element) {
  if ((u32)index == array_count) {
    u64 whole = (size + 15) / 16 * 16;
    if (array_count == MAX_ARRAYS || region_count == MAX_REGIONS || arena_used + whole + REDZONE > ARENA)
      fail(ARRAYS, 0, 0, size, false, 0);
    u8 *base = arena + arena_used, *written = arena_written + arena_used;
    regions[region_count++] = Region{base, size, written, arena_cells + arena_used, (u32)element, 1};
    array_count++;
    memset(base, 0xff, size);
    memset(written, 0, size);
    arena_used += whole + REDZONE;
  }
  return regions[region_count - array_count + index].base;
}

void stand_in_barrier(int line) {
  current->state = AT_BARRIER, current->line = line;
  pause();
}

struct Pair { float first, second; };

// d = a b + c of 8x8 matrices. Lane l holds two neighbours of one row; the map is Apple's, as MLX documents it
// (mlx/backend/metal/kernels/steel/gemm/mma.h, get_coord): it is not in the specification of the language.
Pair stand_in_multiply(int line, float a0, float a1, float b0, float b1, float c0, float c1) {
  u32 slot = current->multiplies++ % 2;  // a lane may be at the next product before another has read this one
  float *mine = operands[current_index][slot];
  mine[0] = a0, mine[1] = a1, mine[2] = b0, mine[3] = b1;
  current->state = AT_MULTIPLY, current->line = line;
  pause();
  u32 first = current_index / LANES * LANES, lane = current_index % LANES;
  float a[8][8], b[8][8];
  for (u32 l = 0; l < LANES; l++) {
    u32 quad = l / 4, row = (quad & 4) + l / 2 % 4, column = (quad & 2) * 2 + l % 2 * 2;
    const float *theirs = operands[first + l][slot];
    a[row][column] = theirs[0], a[row][column + 1] = theirs[1];
    b[row][column] = theirs[2], b[row][column + 1] = theirs[3];
  }
  u32 quad = lane / 4, row = (quad & 4) + lane / 2 % 4, column = (quad & 2) * 2 + lane % 2 * 2;
  for (u32 k = 0; k < 8; k++) c0 += a[row][k] * b[k][column], c1 += a[row][k] * b[k][column + 1];
  return Pair{c0, c1};
}

// What clang calls before accesses.
#define ACCESS(size) \
  void __tsan_read##size(void *at) { access(at, size, false, true); } \
  void __tsan_write##size(void *at) { access(at, size, true, true); } \
  void __tsan_unaligned_read##size(void *at) { access(at, size, false, false); } \
  void __tsan_unaligned_write##size(void *at) { access(at, size, true, false); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void *__tsan_memset(void *at, int value, u64 size) {
  if (size) access(at, size, true, false);
  return memset(at, value, size);
}
void *__tsan_memcpy(void *to, const void *from, u64 size) {
  if (size) access((void *)from, size, false, false), access(to, size, true, false);
  return memcpy(to, from, size);
}
void *__tsan_memmove(void *to, const void *from, u64 size) {
  if (size) access((void *)from, size, false, false), access(to, size, true, false);
  return memmove(to, from, size);
}
void __tsan_init() {}
[[noreturn]] void __ubsan_handle_local_out_of_bounds_abort() { fail(REGISTERS, 0, 0, 0, false, 0); }

}  // extern "C"
