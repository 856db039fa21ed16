// Spans, and where keys and values lie in pages. Compiled for HEAD_DIM, GROUP (query heads of a key-value head) and
// ELEMENT_BYTES.

constexpr int PAGE = 64;

// Consecutive rows of one sequence: the first in the batch, how many, how many tokens the sequence had before, and
// which row of the page tables is its. A span without one is padding.
struct Span {
    int first, rows, position, slot;
};

// The spans of a launch, the page tables, and how far they may point.
struct Batch {
    const Span* spans;
    int span_count, rows;
    const int* tables; // [slots, table_stride]
    int table_stride, slots, pages;
};

// Span `index`, as padding where it would reach beyond the batch or its table.
__device__ __forceinline__ Span span_at(const Batch& batch, int index) {
    int4 x = *reinterpret_cast<const int4*>(batch.spans + index);
    bool valid = x.x >= 0 && x.y > 0 && x.x <= batch.rows - x.y && x.z >= 0 && x.w >= 0 && x.w < batch.slots &&
                 i64(x.z) + x.y <= i64(batch.table_stride) * PAGE;
    return {x.x, valid ? x.y : 0, x.z, valid ? x.w : -1};
}

// Number of the span's page at `index` of its table.
__device__ __forceinline__ int page_at(const Batch& batch, Span span, int index) {
    return min(max(batch.tables[i64(span.slot) * batch.table_stride + index], 0), batch.pages - 1);
}

#if ELEMENT_BYTES == 2
typedef bf16 Element;
#else
typedef float Element;
#endif

// Keys, and as many values, of one head in a page.
constexpr int HEAD_PAGE = PAGE * HEAD_DIM;

// Pieces of 16 bytes in a row of bf16 values.
constexpr int PIECES = HEAD_DIM / 8;

// Keys of a head in a page; its values follow.
__device__ __forceinline__ i64 head_page(int page, int kv_heads, int kv_head) {
    return (i64(page) * kv_heads + kv_head) * (2 * HEAD_PAGE);
}

// Place of a channel of a token within the keys, or the values, of a head. Where tensor cores can take the head, a
// page lies in memory as they read it from shared memory, so that one plain copy brings it there: strips of 64
// channels, [PAGE, 64] each, whose rows of 128 bytes have their 16-byte pieces exchanged by the token's last 3 bits.
__device__ __forceinline__ int page_place(int token, int channel) {
#if ELEMENT_BYTES == 2 && HEAD_DIM % 64 == 0
    return (channel / 64 * PAGE + token) * 64 + ((channel % 64) ^ (token % 8 * 8));
#else
    return token * HEAD_DIM + channel;
#endif
}

// Address in shared memory of a 16-byte piece of a token's keys or values, from where a head's lie at `base`.
__device__ __forceinline__ u32 piece_address(u32 base, int token, int piece) {
    return base + (piece / 8 * PAGE + token) * 128 + ((piece ^ token) % 8) * 16;
}

// A span's part of numbered work.
struct Part {
    Span span;
    int place; // of the work within the span's; where there is no such work, beyond the last
};

// The span that work `index` belongs to when each has `count(span)` of it, in order. All lanes of a warp call it.
template <typename Count>
__device__ __forceinline__ Part find_part(const Batch& batch, int index, Count count) {
    int lane = threadIdx.x % 32;
    for (int start = 0; start < batch.span_count; start += 32) {
        Span span = {0, 0, 0, -1};
        if (start + lane < batch.span_count) span = span_at(batch, start + lane);
        int own = span.slot < 0 ? 0 : count(span);
        int sum = own;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            int before = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += before;
        }
        u32 beyond = __ballot_sync(~0u, index < sum);
        if (beyond != 0) {
            int owner = __ffs(beyond) - 1;
            Part part;
            part.span.first = __shfl_sync(~0u, span.first, owner);
            part.span.rows = __shfl_sync(~0u, span.rows, owner);
            part.span.position = __shfl_sync(~0u, span.position, owner);
            part.span.slot = __shfl_sync(~0u, span.slot, owner);
            part.place = index - __shfl_sync(~0u, sum - own, owner);
            return part;
        }
        index -= __shfl_sync(~0u, sum, 31);
    }
    return {{0, 0, 0, -1}, index};
}

// Some tokens of a span, for one key-value head.
struct Tile {
    Span span; // without a slot where there is no such tile
    int kv_head;
    int token;  // position of the first one, a multiple of the tokens of a tile
    int beyond; // how far beyond the last it is where there is no such tile
};

// Bytes of keys and values that the second-level cache surely keeps while tiles pass over them.
constexpr i64 CACHED_BYTES = 40 << 20;

// Tile `index` of a launch. The latest tokens of a span, which have the most keys, come first, so that short tiles are
// left for the end. Where a span's keys are too many for the cache, its heads go one after the other, so that the tiles
// that run at a time share them.
template <int TOKENS> __device__ __forceinline__ Tile find_tile(const Batch& batch, int kv_heads, int index) {
    auto tiles = [](Span span) { return (span.position + span.rows - 1) / TOKENS - span.position / TOKENS + 1; };
    Part part = find_part(batch, index, [&](Span span) { return tiles(span) * kv_heads; });
    int count = tiles(part.span);
    i64 bytes = i64(part.span.position + part.span.rows) * kv_heads * HEAD_DIM * 2 * sizeof(Element);
    bool together = bytes <= CACHED_BYTES;
    int kv_head = together ? part.place % kv_heads : part.place / count;
    int later = together ? part.place / kv_heads : part.place % count;
    int token = (part.span.position / TOKENS + count - 1 - later) * TOKENS;
    return {part.span, kv_head, token, part.place};
}

// Logarithm of a row's sum of e^score from the greatest product of query and key, the scale of scores in units of log 2,
// and the sum relative to the greatest.
__device__ __forceinline__ float log_sum(float most, float scale, float total) {
    return (most * scale + log2f(total)) * 0.6931471805599453f;
}
