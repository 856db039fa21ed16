// What the kernels of gradients share. With the scores S_ij = q_i·k_j / sqrt(HEAD_DIM) of rotated queries and keys, the
// forward pass's lse_i and delta_i = do_i·o_i:
//
//   P_ij = e^(S_ij - lse_i)     dS_ij = P_ij (do_i·v_j - delta_i)
//   dq_i = sum_j dS_ij k_j / sqrt(HEAD_DIM)     dk_j = sum_i dS_ij q_i / sqrt(HEAD_DIM)     dv_j = sum_i P_ij do_i
//
// (Dao et al., FlashAttention, appendix B.4.) One kernel takes the queries of a block over all keys before, another the
// keys of a block over all queries after, and both compute P and dS: so no two blocks add to one sum. The queries of a
// key-value head are rows in the order of (token, head). Spans are whole sequences, from position 0 on.

constexpr int PAIRS = ROTARY_DIM / 2;

// What both kernels read and write.
struct Gradients {
    int kv_heads;
    const Element* projected; // [rows, stride]: queries, rotated, and what the pages were filled from
    i64 stride;
    const Element* pages;
    const Element* dout;   // [rows, heads * HEAD_DIM]
    const float* lse;      // [rows, heads]
    const float* delta;    // [rows, heads]
    const float* angles;   // [rows, 2, PAIRS]: cosines and sines
    Element* dprojected;   // [rows, stride]: by what was not rotated yet
};

// Query row `flat` of a span's key-value head.
struct QueryRow {
    i64 row; // of the batch
    int head;
};

__device__ __forceinline__ QueryRow query_row(Span span, int kv_head, int flat) {
    return {i64(span.first) + flat / GROUP, kv_head * GROUP + flat % GROUP};
}

// The part of work that a block has, `count(span)` for each key-value head of a span, and the head.
struct Work {
    Span span; // without a slot where there is none
    int kv_head, place, count;
};

template <typename Count> __device__ __forceinline__ Work find_work(const Batch& batch, int kv_heads, Count count) {
    const auto whole = [&](Span span) { return span.position == 0 ? count(span) : 0; };
    const Part part = find_part(batch, blockIdx.x, [&](Span span) { return whole(span) * kv_heads; });
    return {part.span, part.place % kv_heads, part.place / kv_heads, whole(part.span)};
}
