// Products of panels for a group of four warps, compiled with WGMMA for Hopper's warpgroup products, else for what every
// device since Ampere has. Accumulators and left operands in registers lie the same in both: warp `w` has rows 16 w to
// 16 w + 15, of which a thread has `lane / 4` and 8 more, and of each 8 columns two from `lane % 4 * 2` on.

// 64 rows of 64 bf16 channels, whose 16-byte pieces are swizzled over the 128 bytes of a row.
constexpr int PANEL = 64 * 128;

__device__ __forceinline__ u32 panel_piece(u32 panel, int row, int piece) {
    return panel + row * 128 + ((piece ^ (row % 8)) * 16);
}

__device__ __forceinline__ void meet(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

#if WGMMA

// Makes what this thread wrote to shared memory visible to the tensor cores.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Describes swizzled panels to the tensor cores: groups of 8 rows follow one another, and so do panels.
// An address within a cluster says above its lowest 18 bits whose shared memory it is, which has no place here. What is
// the same for all of a product's steps is computed once, and for each step its offset added to the lower half.
__device__ __forceinline__ u64 matrix(u32 panels, u32 offset) {
    const u32 first = (panels & 0x3ffff) >> 4 | u32(PANEL >> 4) << 16;
    return u64(first + offset / 16) | u64(1024 >> 4 | 1 << 30) << 32;
}

// Channels 16 k to 16 k + 15 of rows whose channels are summed over.
__device__ __forceinline__ u64 channels(u32 panels, int k) {
    return matrix(panels, k / 4 * PANEL + k % 4 * 32);
}

// Rows 16 k to 16 k + 15, which are summed over.
__device__ __forceinline__ u64 tokens(u32 panels, int k) { return matrix(panels, k * 16 * 128); }

#define SUMS8(d, i)                                                                                           \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define SUMS32(d, i) SUMS8(d, i), SUMS8(d, i + 8), SUMS8(d, i + 16), SUMS8(d, i + 24)
#define NAMES32                                                                                         \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
    "%27,%28,%29,%30,%31}"
#define NAMES64                                                                                         \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
    "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
    "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

// d = a b^T, or d += a b^T, over 16 channels: both operands in shared memory.
__device__ __forceinline__ void multiply(float (&d)[32], u64 a, u64 b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES32 ", %32, %33, p, 1, 1, 0, 0;}"
                 : SUMS32(d, 0)
                 : "l"(a), "l"(b), "r"(add));
}

// The same with the left operand in registers.
__device__ __forceinline__ void multiply(float (&d)[32], const u32 (&a)[4], u64 b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0;"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES32
                 ", {%32,%33,%34,%35}, %36, p, 1, 1, 0;}"
                 : SUMS32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// d += a b over 16 rows of b, left operand in registers.
__device__ __forceinline__ void multiply_rows(float (&d)[64], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " NAMES64
                 ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : SUMS32(d, 0), SUMS32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void multiply_rows(float (&d)[32], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES32
                 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : SUMS32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Stores four 8 by 8 tiles, each transposed; lane l gives the address of row l % 8 of tile l / 8.
__device__ __forceinline__ void store_tiles_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}

#else

// The same products by warps: each has the 16 rows of its place in the warpgroup. They are done when they are issued.
__device__ __forceinline__ void publish() {}
__device__ __forceinline__ void begin_products() {}
__device__ __forceinline__ void commit_products() {}
template <int PENDING> __device__ __forceinline__ void await_products() {}

struct Channels {
    u32 panel;
    int piece;
};
__device__ __forceinline__ Channels channels(u32 panels, int k) { return {panels + k / 4 * PANEL, k % 4 * 2}; }

struct Tokens {
    u32 panels;
    int first;
};
__device__ __forceinline__ Tokens tokens(u32 panels, int k) { return {panels, k * 16}; }

template <int COUNT>
__device__ __forceinline__ void multiply_tiles(float (&d)[COUNT], int tile, const u32 (&a)[4], const u32 (&b)[4]) {
    mma_bf16(reinterpret_cast<float(&)[4]>(d[4 * tile]), a, b[0], b[1]);
    mma_bf16(reinterpret_cast<float(&)[4]>(d[4 * tile + 4]), a, b[2], b[3]);
}

__device__ __forceinline__ void multiply(float (&d)[32], const u32 (&a)[4], Channels b, int add) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int x = 0; x < 32; x++) d[x] = add ? d[x] : 0.0f;
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
        u32 tiles[4];
        load_tiles(tiles, panel_piece(b.panel, (t + lane / 16) * 8 + lane % 8, b.piece + lane / 8 % 2));
        multiply_tiles(d, t, a, tiles);
    }
}

__device__ __forceinline__ void multiply(float (&d)[32], Channels a, Channels b, int add) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    u32 tiles[4];
    load_tiles(tiles, panel_piece(a.panel, warp * 16 + lane % 16, a.piece + lane / 16));
    multiply(d, tiles, b, add);
}

template <int COUNT>
__device__ __forceinline__ void multiply_rows(float (&d)[COUNT], const u32 (&a)[4], Tokens b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < COUNT / 4; t += 2) {
        u32 tiles[4];
        load_tiles_transposed(tiles, panel_piece(b.panels + t / 8 * PANEL, b.first + lane % 16, t % 8 + lane / 16));
        multiply_tiles(d, t, a, tiles);
    }
}

__device__ __forceinline__ u32 transpose(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// Stores four 8 by 8 tiles, each transposed; lane l gives the address of row l % 8 of tile l / 8.
__device__ __forceinline__ void store_tiles_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
    const u32 tiles[4] = {transpose(a), transpose(b), transpose(c), transpose(d)};
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 row = __shfl_sync(~0u, address, i * 8 + lane / 4);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(row + lane % 4 * 4), "r"(tiles[i]) : "memory");
    }
}

#endif
