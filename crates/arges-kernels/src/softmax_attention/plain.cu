// Rotation and storing of keys and values, and attention for any head that the matrix kernels do not take. Compiled for
// ROTARY_DIM, and VECTOR channels that a thread moves together, besides what pages.cuh needs.

struct alignas(VECTOR * sizeof(Element)) Vector {
    Element at[VECTOR];
};

constexpr int PAIRS = ROTARY_DIM / 2;

// Rotates the queries of `projected [rows, stride]` in place (heads * HEAD_DIM queries, then keys, then values in each
// row), and stores rotated keys and values in their pages. A block has one row. `table [rows, 2, PAIRS]` has cosines
// and sines, `tables [slots, table_stride]` the pages of each slot.
extern "C" __global__ void __launch_bounds__(256)
append(const Span* spans, int span_count, int rows, const int* tables, int table_stride, int slots, int page_count,
       int kv_heads, Element* projected, i64 stride, const float* table, Element* pages) {
    Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    wait_for_previous();
    let_next_start();
    __shared__ Span found;
    int row = blockIdx.x;
    if (threadIdx.x == 0) found.slot = -1;
    __syncthreads();
    for (int i = threadIdx.x; i < span_count; i += blockDim.x) {
        Span span = span_at(batch, i);
        if (span.slot >= 0 && row >= span.first && row - span.first < span.rows) found = span;
    }
    __syncthreads();
    Span span = found;
    if (span.slot < 0) return;
    int position = span.position + row - span.first;
    int token = position % PAGE;
    int page = page_at(batch, span, position / PAGE);
    Element* queries = projected + row * stride;
    const Element* keys = queries + i64(kv_heads) * GROUP * HEAD_DIM;
    const Element* values = keys + i64(kv_heads) * HEAD_DIM;
    const float* cosines = table + i64(row) * ROTARY_DIM;
    const float* sines = cosines + PAIRS;

    constexpr int turned = PAIRS / VECTOR;
    int heads = kv_heads * GROUP;
    for (int i = threadIdx.x; i < (heads + kv_heads) * turned; i += blockDim.x) {
        int head = i / max(turned, 1), channel = i % max(turned, 1) * VECTOR;
        Element* from = queries + i64(head) * HEAD_DIM + channel;
        Vector low = *reinterpret_cast<Vector*>(from), high = *reinterpret_cast<Vector*>(from + PAIRS);
#pragma unroll
        for (int c = 0; c < VECTOR; c++) {
            float a = to_float(low.at[c]), b = to_float(high.at[c]);
            float cosine = cosines[channel + c], sine = sines[channel + c];
            low.at[c] = from_float<Element>(a * cosine - b * sine);
            high.at[c] = from_float<Element>(b * cosine + a * sine);
        }
        Element *to_low = from, *to_high = from + PAIRS;
        if (head >= heads) {
            Element* to = pages + head_page(page, kv_heads, head - heads);
            to_low = to + page_place(token, channel);
            to_high = to + page_place(token, channel + PAIRS);
        }
        *reinterpret_cast<Vector*>(to_low) = low;
        *reinterpret_cast<Vector*>(to_high) = high;
    }
    // Channels of the keys that are not rotated, and the values.
    constexpr int plain = (HEAD_DIM - ROTARY_DIM) / VECTOR, all = HEAD_DIM / VECTOR;
    for (int i = threadIdx.x; i < kv_heads * (plain + all); i += blockDim.x) {
        int head = i / (plain + all), piece = i % (plain + all);
        bool key = piece < plain;
        int channel = key ? ROTARY_DIM + piece * VECTOR : (piece - plain) * VECTOR;
        const Element* from = (key ? keys : values) + i64(head) * HEAD_DIM + channel;
        Element* to = pages + head_page(page, kv_heads, head) + (key ? 0 : HEAD_PAGE) + page_place(token, channel);
        *reinterpret_cast<Vector*>(to) = *reinterpret_cast<const Vector*>(from);
    }
    // A tensor core multiplies what is masked by 0. Whoever begins a page clears the values behind his own, lest a
    // NaN that an earlier owner left there spreads.
    int end = span.position + span.rows;
    if (position + 1 == end && position - token >= span.position && end % PAGE != 0) {
        int rest = PAGE - 1 - token;
        for (int i = threadIdx.x; i < kv_heads * rest * all; i += blockDim.x) {
            int head = i / (rest * all), left = i / all % rest, channel = i % all * VECTOR;
            Element* to = pages + head_page(page, kv_heads, head) + HEAD_PAGE + page_place(token + 1 + left, channel);
#pragma unroll
            for (int c = 0; c < VECTOR; c++) to[c] = from_float<Element>(0.0f);
        }
    }
}

constexpr int WARPS = 8, WARP_ROWS = 4, TILE = WARPS * WARP_ROWS;
constexpr int PITCH = HEAD_DIM + 1;
constexpr int LANE_CHANNELS = (HEAD_DIM + 31) / 32;

// out [rows, heads * HEAD_DIM], and lse [rows, heads] unless null. A block has TILE rows of a key-value head, tokens times query heads, and passes over
// the pages in order. Grid: (tiles at most, kv_heads).
extern "C" __global__ void __launch_bounds__(WARPS * 32)
plain_attention(const Span* spans, int span_count, int rows, const int* tables, int table_stride, int slots,
                int page_count, int kv_heads, const Element* projected, i64 stride, const Element* pages, float scale,
                Element* out, float* lse) {
    Batch batch = {spans, span_count, rows, tables, table_stride, slots, page_count};
    extern __shared__ float shared[];
    float* page_rows = shared;                    // [PAGE, PITCH], keys and then values
    float* queries = page_rows + PAGE * PITCH;    // [TILE, HEAD_DIM]
    float* weights = queries + TILE * HEAD_DIM;   // [TILE, PAGE]
    wait_for_previous();
    let_next_start();
    Part part = find_part(batch, blockIdx.x,
                          [](Span span) { return (span.rows * GROUP + TILE - 1) / TILE; });
    Span span = part.span;
    if (span.slot < 0) return;
    int kv_head = blockIdx.y, heads = kv_heads * GROUP;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int begin = part.place * TILE, count = min(TILE, span.rows * GROUP - begin);

    for (int i = threadIdx.x; i < TILE * HEAD_DIM; i += blockDim.x) {
        int r = i / HEAD_DIM, c = i % HEAD_DIM, flat = begin + r;
        i64 from = i64(span.first + flat / GROUP) * stride + (kv_head * GROUP + flat % GROUP) * HEAD_DIM + c;
        queries[i] = r < count ? to_float(projected[from]) * scale : 0.0f;
    }
    float most[WARP_ROWS], total[WARP_ROWS], sums[WARP_ROWS][LANE_CHANNELS];
    int position[WARP_ROWS];
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
        int own = warp * WARP_ROWS + r;
        position[r] = own < count ? span.position + (begin + own) / GROUP : -1;
        most[r] = __int_as_float(0xff800000);
        total[r] = 0.0f;
#pragma unroll
        for (int c = 0; c < LANE_CHANNELS; c++) sums[r][c] = 0.0f;
    }
    int last_page = (span.position + (begin + count - 1) / GROUP) / PAGE;
    for (int p = 0; p <= last_page; p++) {
        int page = page_at(batch, span, p);
        const Element* keys = pages + head_page(page, kv_heads, kv_head);
        __syncthreads();
        for (int i = threadIdx.x; i < HEAD_PAGE; i += blockDim.x) {
            int token = i / HEAD_DIM, c = i % HEAD_DIM;
            page_rows[token * PITCH + c] = to_float(keys[page_place(token, c)]);
        }
        __syncthreads();
        float scores[WARP_ROWS][2] = {};
        const float* own = queries + warp * WARP_ROWS * HEAD_DIM;
        for (int c = 0; c < HEAD_DIM; c++) {
            float a = page_rows[lane * PITCH + c], b = page_rows[(lane + 32) * PITCH + c];
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
                float query = own[r * HEAD_DIM + c];
                scores[r][0] = fmaf(query, a, scores[r][0]);
                scores[r][1] = fmaf(query, b, scores[r][1]);
            }
        }
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            float* row_weights = weights + (warp * WARP_ROWS + r) * PAGE;
            int visible = position[r] - p * PAGE;
            if (visible < 0) {
                row_weights[lane] = row_weights[lane + 32] = 0.0f;
                continue;
            }
            float a = lane <= visible ? scores[r][0] : __int_as_float(0xff800000);
            float b = lane + 32 <= visible ? scores[r][1] : __int_as_float(0xff800000);
            float now = fmaxf(most[r], warp_max(fmaxf(a, b)));
            a = expf(a - now);
            b = expf(b - now);
            float shrink = expf(most[r] - now);
            most[r] = now;
            total[r] = total[r] * shrink + warp_sum(a + b);
#pragma unroll
            for (int c = 0; c < LANE_CHANNELS; c++) sums[r][c] *= shrink;
            row_weights[lane] = a;
            row_weights[lane + 32] = b;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < HEAD_PAGE; i += blockDim.x) {
            int token = i / HEAD_DIM, c = i % HEAD_DIM;
            page_rows[token * PITCH + c] = to_float(keys[HEAD_PAGE + page_place(token, c)]);
        }
        __syncthreads();
        const float* own_weights = weights + warp * WARP_ROWS * PAGE;
        int visible = min(PAGE, span.position + span.rows - p * PAGE);
        for (int token = 0; token < visible; token++) {
            float weight[WARP_ROWS];
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) weight[r] = own_weights[r * PAGE + token];
#pragma unroll
            for (int c = 0; c < LANE_CHANNELS; c++) {
                int channel = lane + 32 * c;
                float value = channel < HEAD_DIM ? page_rows[token * PITCH + channel] : 0.0f;
#pragma unroll
                for (int r = 0; r < WARP_ROWS; r++) sums[r][c] = fmaf(weight[r], value, sums[r][c]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
        int own = warp * WARP_ROWS + r, flat = begin + own;
        if (own >= count) continue;
        i64 head = i64(span.first + flat / GROUP) * heads + kv_head * GROUP + flat % GROUP;
#pragma unroll
        for (int c = 0; c < LANE_CHANNELS; c++) {
            int channel = lane + 32 * c;
            if (channel < HEAD_DIM) out[head * HEAD_DIM + channel] = from_float<Element>(sums[r][c] / total[r]);
        }
        if (lse != nullptr && lane == 0) lse[head] = most[r] + logf(total[r]);
    }
}
