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

// Tokens of span `index` if it is a whole sequence, else 0.
__device__ __forceinline__ int whole_rows(const Batch& batch, int index) {
    const Span span = index < batch.span_count ? span_at(batch, index) : Span{0, 0, 0, -1};
    return span.slot < 0 || span.position != 0 ? 0 : span.rows;
}

__device__ __forceinline__ int key_tasks(int rows) { return (rows + KEYS - 1) / KEYS; }
__device__ __forceinline__ int query_tasks(int rows) { return (rows + QUERIES - 1) / QUERIES; }

// The tasks of a launch. All lanes of a warp call its functions and get the same.
struct Tasks {
    const Batch& batch;
    int kv_heads;
    int of_keys, of_queries; // how many
    int longest;             // tokens of the longest span

    __device__ __forceinline__ Tasks(const Batch& batch, int kv_heads) : batch(batch), kv_heads(kv_heads) {
        int keys = 0, queries = 0, most = 0;
#pragma unroll 1
        for (int i = threadIdx.x % 32; i < batch.span_count; i += 32) {
            const int rows = whole_rows(batch, i);
            keys += key_tasks(rows);
            queries += query_tasks(rows);
            most = max(most, rows);
        }
        of_keys = int(__reduce_add_sync(~0u, u32(keys))) * kv_heads;
        of_queries = int(__reduce_add_sync(~0u, u32(queries))) * kv_heads;
        longest = int(__reduce_max_sync(~0u, u32(most)));
    }

    // Number `index` of the tasks of one kind, the longest first: each span has tasks of lengths 1 to `count(rows)`, one of
    // each for every key-value head. Gives the length.
    template <typename Count> __device__ __forceinline__ int find(int index, Task& task, Count count) const {
        const int lane = threadIdx.x % 32;
        // The tasks longer than `most` are `before`, and there are `index` or fewer.
        int least = 1, most = count(longest), before = 0;
#pragma unroll 1
        while (least < most) {
            const int middle = (least + most) / 2;
            int longer = 0;
#pragma unroll 1
            for (int i = lane; i < batch.span_count; i += 32) longer += max(0, count(whole_rows(batch, i)) - middle);
            longer = int(__reduce_add_sync(~0u, u32(longer))) * kv_heads;
            if (longer <= index) {
                most = middle;
                before = longer;
            } else {
                least = middle + 1;
            }
        }
        task.kv_head = (index - before) % kv_heads;
        int rank = (index - before) / kv_heads;
#pragma unroll 1
        for (int first = 0;; first += 32) {
            const bool has = count(whole_rows(batch, first + lane)) >= most;
            const u32 owners = __ballot_sync(~0u, has);
            const u32 owner = __ballot_sync(~0u, has && __popc(owners & ((1u << lane) - 1)) == rank);
            if (owner != 0) {
                task.span = span_at(batch, first + __ffs(owner) - 1);
                return most;
            }
            rank -= __popc(owners);
        }
    }

    __device__ __forceinline__ Task at(int index) const {
        Task task = {NOTHING};
        if (index < of_keys) {
            const int length = find(index, task, key_tasks);
            task.kind = OF_KEYS;
            task.place = key_tasks(task.span.rows) - length;
        } else if (index < of_keys + of_queries) {
            task.place = find(index - of_keys, task, query_tasks) - 1;
            task.kind = OF_QUERIES;
        } else {
            task.beyond = index - of_keys - of_queries;
        }
        return task;
    }
};

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
