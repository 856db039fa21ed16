// What the kernels of lightning attention share.

#define CHUNK 64

// Consecutive rows of one sequence: the first in the batch, how many, how many tokens the sequence had before, and
// which slot of the cache it has. A span without a slot is padding.
struct Span {
    int first, rows, position, slot;
};

// The spans of a launch, and the bounds of what they may point to.
struct Spans {
    const int4* spans;
    int rows, slots;
};

// Span `at`, as padding where it would reach beyond the batch or the cache.
__device__ __forceinline__ Span span_at(Spans all, int at) {
    const int4 x = all.spans[at];
    const bool valid = x.x >= 0 && x.y > 0 && x.x <= all.rows - x.y && x.z >= 0 && x.w < all.slots;
    return Span{x.x, x.y, x.z, valid ? x.w : -1};
}

// e^(-s n) for n = 0 … CHUNK, head after head.
#define POWERS (CHUNK + 1)

// Span `at` of those that are whole sequences, from position 0 on; without rows where it is padding or another.
__device__ __forceinline__ Span whole_span_at(const int4* spans, int rows, int at) {
    const Span span = span_at(Spans{spans, rows, 0x7fffffff}, at);
    return Span{span.first, span.slot >= 0 && span.position == 0 ? span.rows : 0, 0, span.slot};
}
