//! Products on a GPU: of f32 or bf16 rows with weights in the memory of the device.
//!
//! bf16 products run on tensor cores: on Hopper through its wide instructions (`hopper.cu`), on other cards warp by warp
//! (`mma.cu`). Everything else runs on the ordinary cores (`portable.cu`). In all of them an element is one accumulator
//! over ascending `K`, so that a row's bits do not depend on the rows around it.

mod backward;
mod operands;
mod tiling;

use std::sync::Arc;

use super::Element;
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source,
};

#[cfg(test)]
pub(super) use backward::gradient_defines;
pub use backward::{
    Columns, GRADIENTS, GradientPlace, HOPPER_GRADIENT, ProductGradients, Values, WeightGradient,
    WrittenSquares,
};
pub use operands::{DeviceMatrix, DeviceRows};
use tiling::{
    LARGE, LARGE_ROWS, LONG, MOST_OF_ONE, TILINGS, Tiling, WARP_TILINGS, WarpTiling, expected_rows, fitting,
    for_many,
};
#[cfg(test)]
pub(super) use tiling::{tiling_defines, warp_tiling_defines};

/// Kernels for Hopper's tensor cores.
pub const HOPPER: Source = Source {
    name: "matmul/hopper.cu",
    text: concat!(
        include_str!("wgmma.cuh"),
        include_str!("hopper.cuh"),
        include_str!("hopper_store.cuh"),
        include_str!("hopper_pieces.cuh"),
        include_str!("hopper.cu")
    ),
};
/// Kernels for the tensor cores of other cards.
pub const MMA: Source = Source { name: "matmul/mma.cu", text: include_str!("mma.cu") };
/// Kernels for f32, and for shapes that no tensor core takes.
pub const PORTABLE: Source = Source { name: "matmul/portable.cu", text: include_str!("portable.cu") };

/// Gates and up projections of a gated matrix stand in turn in groups of so many outputs.
pub const GATE_GROUP: usize = 8;
/// Parts of bf16 into which an f32 is split for a product that needs its precision. Two hold 16 bits and a sign, so that
/// a sum of thousands of products is off by no more than adding them up in f32 makes it anyway.
pub const PARTS: usize = 2;

/// What the kernels do with a product, by their numbers.
#[derive(Debug, Clone, Copy)]
enum Epilogue {
    F32 = 0,
    Rounded = 1,
    Activated = 2,
    Gated = 3,
    Parts = 4,
}

/// Which rows are multiplied with which matrix.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// So many rows, with the only matrix.
    All(usize),
    /// Rows of each expert, from `offsets[e]` to `offsets[e + 1]`, of at most so many in all. The kernel before the
    /// last one in the stream must have written the offsets, or an earlier one.
    Grouped { offsets: &'a Buffer<i32>, most: usize },
}

/// Where a product goes, rows `[rows, stride]` each.
pub enum Output<'a> {
    /// f32.
    F32(&'a mut Buffer<f32>),
    /// Rounded to the element of the rows.
    Rounded(&'a mut Activations),
    /// SiLU of the first `silu` outputs, the sigmoid of the others, rounded. `before` takes the product itself, rounded
    /// too, of the first `silu`; what of the others lies there then means nothing.
    Activated { out: &'a mut Activations, silu: usize, before: Option<&'a mut Activations> },
    /// `silu(gate) * up` of a matrix whose gates and ups stand in turn in groups of [`GATE_GROUP`], rounded; `before` takes
    /// all of the product.
    Gated { out: &'a mut Activations, before: Option<&'a mut Activations> },
}

/// Tilings of products with transposes, of [`TILINGS`]: for many tiles, with long sums, and for few.
const TURNED: [usize; 3] = [LARGE, LONG, 4];

/// Compiled products with transposed weights, for each of [`TURNED`]: for one matrix and for experts.
pub(in crate::matmul) struct Turned {
    kernels: [[Kernel; 2]; 3],
}

impl Turned {
    pub(in crate::matmul) fn new(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        let compile = |choice: usize| {
            let tiling = TILINGS[choice];
            let kernel = cuda.module(HOPPER, &turned_defines(tiling)).kernel("product")?;
            let (outputs, rows) = (tiling.outputs(), tiling.rows);
            let named = |what| kernel.called(&format!("of transposes, {what}, tiles of {outputs} by {rows}"));
            Ok::<_, CudaError>([named("one matrix"), named("experts")])
        };
        Ok(Self { kernels: [compile(TURNED[0])?, compile(TURNED[1])?, compile(TURNED[2])?] })
    }
}

fn turned_defines(tiling: Tiling) -> Vec<Define> {
    let mut defines = tiling.defines().to_vec();
    defines.push(("WEIGHTS_TURNED", 1));
    defines
}

/// What `hopper.cu` is compiled for, for transposes.
#[cfg(test)]
pub(super) fn all_turned_defines() -> impl Iterator<Item = Vec<Define>> {
    TURNED.into_iter().map(|choice| turned_defines(TILINGS[choice]))
}

/// The compiled products of a device.
pub struct Products {
    cuda: Arc<Cuda>,
    /// For each of [`TILINGS`], for one matrix and for experts, which profiles tell apart; none before and after Hopper.
    hopper: Vec<[Kernel; 2]>,
    /// For each of [`WARP_TILINGS`]; none on Hopper.
    mma: Vec<Kernel>,
    /// For f32 rows and bf16 rows, f32 weights and bf16 weights.
    portable: [[Option<Kernel>; 2]; 2],
}

fn index(element: Element) -> usize {
    match element {
        Element::F32 => 0,
        Element::Bf16 => 1,
    }
}

impl Products {
    /// Compiles them.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        Self::compiled(cuda, cuda.facts().architecture.has_wgmma())
    }

    /// As on a card without Hopper's tensor cores.
    #[cfg(test)]
    pub(super) fn narrow(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        Self::compiled(cuda, false)
    }

    fn compiled(cuda: &Arc<Cuda>, wide: bool) -> Result<Self, CudaError> {
        let (mut hopper, mut mma) = (Vec::new(), Vec::new());
        if wide {
            for tiling in &TILINGS {
                let kernel = cuda.module(HOPPER, &tiling.defines()).kernel("product")?;
                let (outputs, rows) = (tiling.outputs(), tiling.rows);
                let named = |what| kernel.called(&format!("of {what}, tiles of {outputs} by {rows}"));
                hopper.push([named("one matrix"), named("experts")]);
            }
        } else {
            for tiling in &WARP_TILINGS {
                let kernel = cuda.module(MMA, &tiling.defines()).kernel("product")?;
                mma.push(kernel.called(&format!("tiles of {} by {}", tiling.outputs, tiling.rows)));
            }
        }
        let compile = |rows: i64, weights: i64| {
            let defines = [("ROWS_BF16", rows), ("WEIGHTS_BF16", weights)];
            cuda.module(PORTABLE, &defines).kernel("product").map(Some)
        };
        let portable = [[compile(0, 0)?, compile(0, 1)?], [None, compile(1, 1)?]];
        Ok(Self { cuda: Arc::clone(cuda), hopper, mma, portable })
    }

    /// Multiplies rows with their matrices.
    ///
    /// # Errors
    /// When the driver fails, or there is no kernel for the combination: bf16 rows with f32 weights.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn run(
        &self,
        matrix: &DeviceMatrix,
        x: &DeviceRows,
        rows: Rows<'_>,
        output: Output<'_>,
    ) -> Result<(), CudaError> {
        assert_eq!(x.k, matrix.k, "width of the rows");
        self.start(matrix, x, rows, output, None)
    }

    /// Whether Hopper's tensor cores take these rows and these matrices, turned too.
    pub(in crate::matmul) fn on_hopper(&self, matrix: &DeviceMatrix, x: &DeviceRows) -> bool {
        !self.hopper.is_empty() && x.maps.is_some() && matrix.maps.is_some()
    }

    /// Multiplies rows with their matrices' transposes, for operands [`Products::on_hopper`].
    pub(in crate::matmul) fn run_turned(
        &self,
        turned: &Turned,
        matrix: &DeviceMatrix,
        x: &DeviceRows,
        rows: Rows<'_>,
        output: Output<'_>,
    ) -> Result<(), CudaError> {
        assert_eq!(x.k, matrix.outputs, "width of the rows");
        self.start(matrix, x, rows, output, Some(turned))
    }

    fn start(
        &self,
        matrix: &DeviceMatrix,
        x: &DeviceRows,
        rows: Rows<'_>,
        output: Output<'_>,
        turned: Option<&Turned>,
    ) -> Result<(), CudaError> {
        let outputs = if turned.is_some() { matrix.k } else { matrix.outputs };
        let (offsets, most) = match rows {
            Rows::All(rows) => {
                assert_eq!(matrix.experts, 1, "rows for one matrix");
                (None, rows)
            }
            Rows::Grouped { offsets, most } => {
                assert!(offsets.len() > matrix.experts, "an offset for each expert and the end");
                (Some(offsets), most)
            }
        };
        assert!(most <= x.rows, "{most} rows of {}", x.rows);
        if most == 0 {
            return Ok(());
        }
        let place = |out: &Activations| {
            assert_eq!(out.element(), x.data.element(), "element of the output");
            (out.address(0), out.len())
        };
        let (epilogue, (address, room), stride, silu, before) = match output {
            Output::F32(out) => (Epilogue::F32, (out.address(0), out.len()), outputs, 0, None),
            Output::Rounded(out) => (Epilogue::Rounded, place(out), outputs, 0, None),
            Output::Activated { out, silu, before } => {
                (Epilogue::Activated, place(out), outputs, silu, before)
            }
            Output::Gated { out, before } => {
                assert!(outputs.is_multiple_of(2 * GATE_GROUP), "gates and ups in whole groups");
                (Epilogue::Gated, place(out), outputs / 2, 0, before)
            }
        };
        assert!(room >= most * stride, "room for {most} rows of {stride}");
        let before = before.map_or(0, |before| {
            let (address, room) = place(before);
            assert!(room >= most * outputs, "room for {most} rows of {outputs}");
            address
        });
        let call = Call {
            matrix,
            x,
            offsets,
            outputs,
            turned: turned.is_some(),
            rows: most,
            epilogue,
            address,
            before,
            stride,
            silu,
            row_limit: most,
        };
        if let Some(turned) = turned {
            assert!(
                matches!(call.epilogue, Epilogue::F32 | Epilogue::Rounded),
                "products with transposes are only rounded"
            );
            let choice = for_many(most / matrix.experts, x.k);
            let few = TILINGS[choice].tiles(most, outputs) < self.cuda.facts().multiprocessors;
            let place = if few { 2 } else { usize::from(choice == LONG) };
            return self.run_hopper(&call, TURNED[place], &turned.kernels[place]);
        }
        match x.data.element() {
            _ if self.on_hopper(matrix, x) => {
                let choice = match offsets {
                    Some(_) if most / matrix.experts >= LARGE_ROWS => for_many(most / matrix.experts, x.k),
                    Some(_) => {
                        let choice = fitting(expected_rows(most, matrix.experts));
                        let stores = matches!(call.epilogue, Epilogue::Rounded | Epilogue::Gated);
                        if stores || !TILINGS[choice].for_experts() { choice } else { fitting(MOST_OF_ONE) }
                    }
                    None => self.tiling_of_one(most, outputs, x.k),
                };
                self.run_hopper(&call, choice, &self.hopper[choice])
            }
            Element::Bf16
                if matrix.element() == Element::Bf16
                    && matrix.k.is_multiple_of(8)
                    && !self.mma.is_empty() =>
            {
                self.run_mma(&call)
            }
            _ => self.run_portable(&call),
        }
    }

    /// Multiplies f32 rows with bf16 weights on the tensor cores, each row split into [`PARTS`] that nearly add up to it:
    /// rows `8 g + i` lie in `x` as rows `8 (PARTS g + part) + i`. `out[rows, outputs]`.
    ///
    /// # Errors
    /// When the driver fails, or without tensor cores.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn run_parts(
        &self,
        matrix: &DeviceMatrix,
        x: &DeviceRows,
        rows: usize,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        assert_eq!((x.k, 1), (matrix.k, matrix.experts), "shape of the rows");
        let parts = rows.next_multiple_of(8) * PARTS;
        assert!(parts <= x.rows && out.len() >= rows * matrix.outputs, "room for {rows} rows");
        if rows == 0 {
            return Ok(());
        }
        if !self.on_hopper(matrix, x) {
            return Err(CudaError::Unsupported("products in parts need Hopper's tensor cores".to_owned()));
        }
        let choice = self.tiling_of_one(parts, matrix.outputs, x.k).max(1);
        let call = Call {
            matrix,
            x,
            offsets: None,
            outputs: matrix.outputs,
            turned: false,
            rows: parts,
            epilogue: Epilogue::Parts,
            address: out.address(0),
            before: 0,
            stride: matrix.outputs,
            silu: 0,
            row_limit: rows,
        };
        self.run_hopper(&call, choice, &self.hopper[choice])
    }

    /// The tiling for `rows` rows of one matrix: rather smaller tiles than idle multiprocessors.
    fn tiling_of_one(&self, rows: usize, outputs: usize, k: usize) -> usize {
        let choice = for_many(rows, k);
        let large = TILINGS[choice];
        if rows > large.rows && large.tiles(rows, outputs) >= self.cuda.facts().multiprocessors {
            return choice;
        }
        fitting(rows.min(MOST_OF_ONE))
    }

    /// `kernels` are those of the tiling, for one matrix and for experts.
    fn run_hopper(&self, call: &Call<'_>, choice: usize, kernels: &[Kernel; 2]) -> Result<(), CudaError> {
        let Call { matrix, offsets, .. } = call;
        let tiling = TILINGS[choice];
        let kernel = &kernels[usize::from(offsets.is_some())];
        let rows = &call.x.maps.as_ref().expect("the caller has looked")[choice];
        // Boxes of turned weights have 64 rows.
        let outputs = if call.turned { 64 } else { tiling.outputs() };
        let weights = matrix.map(outputs).expect("the caller has looked");
        let tiles = tiling.tiles(call.rows, call.outputs);
        let processors = self.cuda.facts().multiprocessors;
        let blocks = if offsets.is_some() { processors } else { tiles.min(processors) };
        let shape = LaunchShape::new(blocks, tiling.threads()).shared(tiling.shared());
        let shape = if matrix.fresh { shape } else { shape.overlap() };
        let arguments = [
            Argument::Map(weights),
            Argument::Map(rows),
            Argument::Pointer(call.address),
            Argument::Pointer(call.before),
            Argument::Pointer(offsets.map_or(0, |offsets| offsets.address(0))),
            Argument::I32(matrix.experts as i32),
            Argument::I32(call.rows as i32),
            Argument::I32(call.outputs as i32),
            Argument::I32(call.x.k as i32),
            Argument::I32(call.stride as i32),
            Argument::I32(call.epilogue as i32),
            Argument::I32(call.silu as i32),
            Argument::I32(call.row_limit as i32),
        ];
        // SAFETY: the kernel's arguments, in order. Copies stay within the two maps' matrices. Writes stay within
        // `rows` (the offsets' last is at most that; with parts, `row_limit`) times `stride` elements, or `outputs` of
        // them `before`, for which the callers have checked that there is room.
        unsafe { self.cuda.launch(kernel, shape, &arguments) }
    }

    fn run_mma(&self, call: &Call<'_>) -> Result<(), CudaError> {
        let rows = expected_rows(call.rows, call.matrix.experts);
        let last = WARP_TILINGS.len() - 1;
        let choice = WARP_TILINGS.iter().position(|tiling| tiling.rows >= rows).unwrap_or(last);
        let WarpTiling { rows, outputs, warps, .. } = WARP_TILINGS[choice];
        let threads = 32 * warps[0] * warps[1];
        let shape = call.grid(rows, outputs, threads).shared(WARP_TILINGS[choice].shared());
        // SAFETY: the arguments of such kernels, whose rows and weights are bf16 in rows of multiples of 16 bytes.
        unsafe { self.cuda.launch(&self.mma[choice], shape.overlap(), &call.arguments()) }
    }

    fn run_portable(&self, call: &Call<'_>) -> Result<(), CudaError> {
        let Call { matrix, x, .. } = call;
        let kernel =
            self.portable[index(x.data.element())][index(matrix.element())].as_ref().ok_or_else(|| {
                CudaError::Unsupported("there is no product of bf16 rows with f32 weights".to_owned())
            })?;
        // SAFETY: the arguments of such kernels, for the elements that this one was compiled for.
        unsafe { self.cuda.launch(kernel, call.grid(64, 64, 256).overlap(), &call.arguments()) }
    }
}

/// One product, checked.
struct Call<'a> {
    matrix: &'a DeviceMatrix,
    x: &'a DeviceRows,
    offsets: Option<&'a Buffer<i32>>,
    outputs: usize,
    turned: bool,
    rows: usize,
    epilogue: Epilogue,
    address: u64,
    /// For the product itself, `[rows, outputs]`; or 0.
    before: u64,
    stride: usize,
    silu: usize,
    row_limit: usize,
}

impl Call<'_> {
    /// A block for every tile that there may be.
    fn grid(&self, rows: usize, outputs: usize, threads: usize) -> LaunchShape {
        let (across, down) = (self.matrix.outputs.div_ceil(outputs), self.rows.div_ceil(rows));
        LaunchShape::grid(across, down, self.matrix.experts, threads)
    }

    /// What kernels without maps take. They read `rows` rows and the matrices, and write `rows * stride` elements, and
    /// `rows * outputs` before, for which the callers have checked that there is room.
    fn arguments(&self) -> [Argument<'_>; 11] {
        [
            Argument::Pointer(self.matrix.data.address(0)),
            Argument::Pointer(self.x.data.address(0)),
            Argument::Pointer(self.address),
            Argument::Pointer(self.before),
            Argument::Pointer(self.offsets.map_or(0, |offsets| offsets.address(0))),
            Argument::I32(self.rows as i32),
            Argument::I32(self.matrix.outputs as i32),
            Argument::I32(self.matrix.k as i32),
            Argument::I32(self.stride as i32),
            Argument::I32(self.epilogue as i32),
            Argument::I32(self.silu as i32),
        ]
    }
}
