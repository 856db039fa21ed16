// Gradients of any head in f32 arithmetic, and the dots that all gradients need. Compiled for ROTARY_DIM besides what
// pages.cuh needs.

constexpr int WARPS = 8, WARP_ROWS = 4, TILE = WARPS * WARP_ROWS, THREADS = WARPS * 32;
constexpr int PITCH = HEAD_DIM + 1;
constexpr int LANE_CHANNELS = (HEAD_DIM + 31) / 32;
static_assert(TILE == 32, "a lane has a row of the other tile");

// delta [rows, heads]: do_i·o_i. A block has one row.
extern "C" __global__ void __launch_bounds__(THREADS)
output_dots(const Element* out, const Element* dout, int heads, float* delta) {
    wait_for_previous();
    let_next_start();
    const int lane = threadIdx.x % 32;
    const i64 row = i64(blockIdx.x) * heads;
    for (int head = threadIdx.x / 32; head < heads; head += WARPS) {
        const i64 at = (row + head) * HEAD_DIM;
        float sum = 0.0f;
        for (int c = lane; c < HEAD_DIM; c += 32) sum += to_float(out[at + c]) * to_float(dout[at + c]);
        sum = warp_sum(sum);
        if (lane == 0) delta[row + head] = sum;
    }
}

// Two matrices of TILE rows whose gradients a block computes, two that it passes over, and P and dS between them.
struct Tiles {
    float* own[2];    // [TILE, HEAD_DIM]
    float* other[2];  // [TILE, PITCH]
    float* weights;   // [TILE, TILE]: of each own row for each other
    float* dscores;
};

__device__ __forceinline__ Tiles tiles_at(float* shared) {
    float* other = shared + 2 * TILE * HEAD_DIM;
    float* weights = other + 2 * TILE * PITCH;
    return {{shared, shared + TILE * HEAD_DIM}, {other, other + TILE * PITCH}, weights, weights + TILE * TILE};
}

// Query rows from `first` on and the gradients of their outputs, zeros behind the last.
__device__ __forceinline__ void load_queries(const Gradients& g, Span span, int kv_head, int first, float* const (&to)[2],
                                             int pitch) {
    for (int i = threadIdx.x; i < TILE * HEAD_DIM; i += THREADS) {
        const int r = i / HEAD_DIM, c = i % HEAD_DIM;
        const bool present = first + r < span.rows * GROUP;
        const QueryRow at = query_row(span, kv_head, present ? first + r : 0);
        const i64 head = at.row * g.kv_heads * GROUP + at.head;
        to[0][r * pitch + c] = present ? to_float(g.projected[at.row * g.stride + at.head * HEAD_DIM + c]) : 0.0f;
        to[1][r * pitch + c] = present ? to_float(g.dout[head * HEAD_DIM + c]) : 0.0f;
    }
}

// Keys and values from token `first` on, zeros behind the last.
__device__ __forceinline__ void load_keys(const Gradients& g, const Batch& batch, Span span, int kv_head, int first,
                                          float* const (&to)[2], int pitch) {
    const int page = page_at(batch, span, first / PAGE);
    const Element* from = g.pages + head_page(page, g.kv_heads, kv_head);
    for (int i = threadIdx.x; i < TILE * HEAD_DIM; i += THREADS) {
        const int r = i / HEAD_DIM, c = i % HEAD_DIM;
        const bool present = first + r < span.rows;
        const int place = page_place((first + r) % PAGE, c);
        to[0][r * pitch + c] = present ? to_float(from[place]) : 0.0f;
        to[1][r * pitch + c] = present ? to_float(from[HEAD_PAGE + place]) : 0.0f;
    }
}

// Products of the warp's own rows with the other row of each lane.
__device__ __forceinline__ void dots(float (&sums)[WARP_ROWS], const float* own, const float* other) {
    own += threadIdx.x / 32 * WARP_ROWS * HEAD_DIM;
    other += threadIdx.x % 32 * PITCH;
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) sums[r] = 0.0f;
    for (int c = 0; c < HEAD_DIM; c++) {
        const float x = other[c];
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) sums[r] = fmaf(own[r * HEAD_DIM + c], x, sums[r]);
    }
}

// Adds the other rows, weighted, to sums of the warp's own rows.
__device__ __forceinline__ void add_weighted(float (&sums)[WARP_ROWS][LANE_CHANNELS], const float* weights,
                                             const float* other) {
    weights += threadIdx.x / 32 * WARP_ROWS * TILE;
    for (int j = 0; j < TILE; j++) {
#pragma unroll
        for (int c = 0; c < LANE_CHANNELS; c++) {
            const int channel = threadIdx.x % 32 + 32 * c;
            const float x = channel < HEAD_DIM ? other[j * PITCH + channel] : 0.0f;
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) sums[r][c] = fmaf(weights[r * TILE + j], x, sums[r][c]);
        }
    }
}

// P and dS of the warp's own rows, whose `visible(r, lane)` says whether query and key see each other.
template <typename Visible>
__device__ __forceinline__ void weigh(const Tiles& tiles, float scale, const float (&lse)[WARP_ROWS],
                                      const float (&delta)[WARP_ROWS], Visible visible) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * WARP_ROWS;
    float scores[WARP_ROWS], dweights[WARP_ROWS];
    dots(scores, tiles.own[0], tiles.other[0]);
    dots(dweights, tiles.own[1], tiles.other[1]);
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
        const float weight = visible(first + r, lane) ? expf(scores[r] * scale - lse[r]) : 0.0f;
        tiles.weights[(first + r) * TILE + lane] = weight;
        tiles.dscores[(first + r) * TILE + lane] = weight * (dweights[r] - delta[r]);
    }
    __syncwarp();
}

// Stores sums of the warp's own row `r` at `to`, turned back by the angles of that row of the batch, through `room`.
__device__ __forceinline__ void store_turned(Element* to, const float (&sums)[LANE_CHANNELS], float scale,
                                             const float* angles, float* room) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
    for (int c = 0; c < LANE_CHANNELS; c++) {
        if (lane + 32 * c < HEAD_DIM) room[lane + 32 * c] = sums[c] * scale;
    }
    __syncwarp();
    for (int c = lane; c < HEAD_DIM; c += 32) {
        float x = room[c];
        if (c < PAIRS) {
            x = x * angles[c] + room[c + PAIRS] * angles[PAIRS + c];
        } else if (c < ROTARY_DIM) {
            x = x * angles[c - PAIRS] - room[c - PAIRS] * angles[c];
        }
        to[c] = from_float<Element>(x);
    }
}

#define ARGUMENTS                                                                                                     \
    const Span *spans, int span_count, int rows, const int *tables, int table_stride, int slots, int page_count,      \
        int kv_heads, const Element *projected, i64 stride, const Element *pages, const Element *dout,                \
        const float *lse, const float *delta, const float *angles, float scale, Element *dprojected

// A block has TILE query rows.
extern "C" __global__ void __launch_bounds__(THREADS) query_gradients(ARGUMENTS) {
    const Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    const Gradients g = {kv_heads, projected, stride, pages, dout, lse, delta, angles, dprojected};
    extern __shared__ float shared[];
    const Tiles tiles = tiles_at(shared);
    wait_for_previous();
    let_next_start();
    const Work work = find_work(batch, kv_heads, [](Span span) { return (span.rows * GROUP + TILE - 1) / TILE; });
    const Span span = work.span;
    if (span.slot < 0) return;
    const int warp = threadIdx.x / 32, heads = kv_heads * GROUP;
    const int first = (work.count - 1 - work.place) * TILE;
    load_queries(g, span, work.kv_head, first, tiles.own, HEAD_DIM);
    float own_lse[WARP_ROWS], own_delta[WARP_ROWS], sums[WARP_ROWS][LANE_CHANNELS] = {};
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
        const int flat = first + warp * WARP_ROWS + r;
        const bool present = flat < span.rows * GROUP;
        const QueryRow at = query_row(span, work.kv_head, present ? flat : 0);
        own_lse[r] = present ? lse[at.row * heads + at.head] : 0.0f;
        own_delta[r] = present ? delta[at.row * heads + at.head] : 0.0f;
    }
    const int last = min((first + TILE - 1) / GROUP, span.rows - 1);
    for (int key = 0; key <= last; key += TILE) {
        __syncthreads();
        load_keys(g, batch, span, work.kv_head, key, tiles.other, PITCH);
        __syncthreads();
        weigh(tiles, scale, own_lse, own_delta, [&](int own, int other) { return key + other <= (first + own) / GROUP; });
        add_weighted(sums, tiles.dscores, tiles.other[0]);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
        const int own = warp * WARP_ROWS + r;
        if (first + own >= span.rows * GROUP) continue;
        const QueryRow at = query_row(span, work.kv_head, first + own);
        store_turned(dprojected + at.row * stride + at.head * HEAD_DIM, sums[r], scale, angles + at.row * ROTARY_DIM,
                     tiles.own[0] + own * HEAD_DIM);
    }
}

// A block has TILE keys and their values.
extern "C" __global__ void __launch_bounds__(THREADS) key_gradients(ARGUMENTS) {
    const Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    const Gradients g = {kv_heads, projected, stride, pages, dout, lse, delta, angles, dprojected};
    extern __shared__ float shared[];
    const Tiles tiles = tiles_at(shared);
    wait_for_previous();
    let_next_start();
    const Work work = find_work(batch, kv_heads, [](Span span) { return (span.rows + TILE - 1) / TILE; });
    const Span span = work.span;
    if (span.slot < 0) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, heads = kv_heads * GROUP;
    const int first = work.place * TILE;
    load_keys(g, batch, span, work.kv_head, first, tiles.own, HEAD_DIM);
    float dkeys[WARP_ROWS][LANE_CHANNELS] = {}, dvalues[WARP_ROWS][LANE_CHANNELS] = {};
    for (int flat = first * GROUP; flat < span.rows * GROUP; flat += TILE) {
        __syncthreads();
        load_queries(g, span, work.kv_head, flat, tiles.other, PITCH);
        const bool present = flat + lane < span.rows * GROUP;
        const QueryRow at = query_row(span, work.kv_head, present ? flat + lane : 0);
        const float other_lse = present ? lse[at.row * heads + at.head] : 0.0f;
        const float other_delta = present ? delta[at.row * heads + at.head] : 0.0f;
        float all_lse[WARP_ROWS], all_delta[WARP_ROWS];
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) all_lse[r] = other_lse, all_delta[r] = other_delta;
        __syncthreads();
        weigh(tiles, scale, all_lse, all_delta, [&](int own, int other) { return first + own <= (flat + other) / GROUP; });
        add_weighted(dkeys, tiles.dscores, tiles.other[0]);
        add_weighted(dvalues, tiles.weights, tiles.other[1]);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
        const int own = warp * WARP_ROWS + r;
        if (first + own >= span.rows) continue;
        const i64 row = i64(span.first) + first + own;
        Element* to = dprojected + row * stride + (heads + work.kv_head) * HEAD_DIM;
        store_turned(to, dkeys[r], scale, angles + row * ROTARY_DIM, tiles.own[0] + own * HEAD_DIM);
        to += kv_heads * HEAD_DIM;
#pragma unroll
        for (int c = 0; c < LANE_CHANNELS; c++) {
            const int channel = lane + 32 * c;
            if (channel < HEAD_DIM) to[channel] = from_float<Element>(dvalues[r][c]);
        }
    }
}
