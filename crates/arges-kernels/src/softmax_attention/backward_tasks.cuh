// How blocks share the work of gradients on Hopper.
//
// A task is 128 keys of a key-value head, 64 of each of two warpgroups, over all queries that see them; or two tiles of
// query rows, one of each warpgroup, over all pages before. A tile is as many tokens as have their query heads in 64 rows.
// Tasks are numbered, and blocks draw their numbers: those of keys first, which are the longest, and in each kind the
// longest first, so that all blocks end together.

constexpr int TOKENS = 64 / GROUP, TILE_ROWS = TOKENS * GROUP;
constexpr int KEYS = 2 * PAGE, QUERIES = 2 * TOKENS;

enum Kind { NOTHING, OF_KEYS, OF_QUERIES };

struct Task {
    Kind kind;
    Span span;
    int kv_head, place; // the keys from `place * KEYS`, or the queries from `place * QUERIES` on
    int beyond;         // how far beyond the last it is, where it is nothing
};

// Looks for number `index` of tasks of one kind, the longest first: each span has tasks of lengths 1 to `count(span)`, one
// of each for every key-value head. Gives its length, or 0 where the kind has fewer, by which `index` then is less. All
// lanes of a warp call it.
template <typename Count>
__device__ __forceinline__ int find_longest(const Batch& batch, int kv_heads, int& index, Task& task, Count count) {
    const int lane = threadIdx.x % 32;
    const auto longest = [&](int i) {
        const Span span = i < batch.span_count ? span_at(batch, i) : Span{0, 0, 0, -1};
        return span.slot < 0 || span.position != 0 ? 0 : count(span);
    };
    const auto longer_than = [&](int length) {
        int sum = 0;
#pragma unroll 1
        for (int i = lane; i < batch.span_count; i += 32) sum += max(0, longest(i) - length);
        return int(__reduce_add_sync(~0u, u32(sum))) * kv_heads;
    };
    const int all = longer_than(0);
    if (index >= all) {
        index -= all;
        return 0;
    }
    int length = 1, most = count(Span{0, batch.rows, 0, 0});
#pragma unroll 1
    while (length < most) {
        const int middle = (length + most) / 2;
        if (longer_than(middle) <= index) most = middle;
        else length = middle + 1;
    }
    index -= longer_than(length);
    task.kv_head = index % kv_heads;
    int rank = index / kv_heads;
#pragma unroll 1
    for (int first = 0;; first += 32) {
        const bool has = longest(first + lane) >= length;
        const u32 owners = __ballot_sync(~0u, has);
        const u32 owner = __ballot_sync(~0u, has && __popc(owners & ((1u << lane) - 1)) == rank);
        if (owner != 0) {
            task.span = span_at(batch, first + __ffs(owner) - 1);
            return length;
        }
        rank -= __popc(owners);
    }
}

__device__ __forceinline__ Task find_task(const Batch& batch, int kv_heads, int index) {
    const auto keys = [](Span span) { return (span.rows + KEYS - 1) / KEYS; };
    const auto queries = [](Span span) { return (span.rows + QUERIES - 1) / QUERIES; };
    Task task = {NOTHING};
    if (const int length = find_longest(batch, kv_heads, index, task, keys)) {
        task.kind = OF_KEYS;
        task.place = keys(task.span) - length;
    } else if (const int length = find_longest(batch, kv_heads, index, task, queries)) {
        task.kind = OF_QUERIES;
        task.place = length - 1;
    }
    task.beyond = index;
    return task;
}

// What passes by for a task: tiles from the span's last down to the first whose queries see any of the keys; or pages, from
// the first to the last that any of the queries sees.
struct Stream {
    int first, count;

    __device__ __forceinline__ Stream(const Task& task) {
        if (task.kind == OF_KEYS) {
            // All keys of a head begin with the same tile, which then comes from the second-level cache.
            first = (task.span.rows - 1) / TOKENS;
            count = first - task.place * KEYS / TOKENS + 1;
        } else {
            first = 0;
            count = (min((task.place + 1) * QUERIES, task.span.rows) - 1) / PAGE + 1;
        }
    }
};
