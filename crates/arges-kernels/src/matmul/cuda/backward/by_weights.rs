//! Gradients by weights. On Hopper the tensor cores read both operands as they lie, with rows along the sum
//! (`hopper_gradient.cu`). Where the rows of one do not begin at multiples of 16 bytes, columns are laid out as rows first
//! (`backward.cu`). Elsewhere, and in f32, the ordinary cores multiply. An element is one accumulator over ascending
//! rows, or a fixed number of them added in order: the same bits every time.

use std::ops::Range;
use std::sync::Arc;

use super::{Columns, GradientPlace, ProductGradients, TILE, Values, WeightGradient};
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source, TensorMap,
};
use crate::matmul::Element;
use crate::matmul::cuda::tiling::{LONG, TILINGS, Tiling};
use crate::matmul::cuda::{Rows, index};

/// Kernels for Hopper's tensor cores.
pub const HOPPER_GRADIENT: Source = Source {
    name: "matmul/hopper_gradient.cu",
    text: concat!(
        include_str!("../../wgmma.cuh"),
        include_str!("../../hopper.cuh"),
        include_str!("../../hopper_gradient.cu")
    ),
};

/// Rows of a step of the tensor cores; those of an expert are padded to a multiple of it where they are copied.
const STEP: usize = 64;
/// Rows that one block of the ordinary cores adds up where blocks are few.
const PART: usize = 512;
/// Columns of gradients that are few, and the rows that one block adds up of those.
const FEW_COLUMNS: usize = 64;
const FEW_PART: usize = 128;
/// Parts at most, so that sums of parts stay small.
const MOST_PARTS: usize = 64;

/// How the operands lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Rows of activations.
    InPlace = 0,
    /// Their columns as rows.
    Copied = 1,
}

/// The kernels of Hopper, by [`Layout`], each for many tiles and for few.
pub(super) struct Hopper {
    kernels: [[(Tiling, Kernel); 2]; 2],
}

/// For many tiles and for few. Sums are long here.
const CHOICES: [Tiling; 2] = [TILINGS[LONG], TILINGS[3]];

impl Hopper {
    pub(super) fn new(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        let compile = |layout, tiling: Tiling| {
            let defines = defines(tiling, layout);
            let module = match layout {
                Layout::InPlace => cuda.module(HOPPER_GRADIENT, &defines),
                // Of models whose widths are no multiples of 8.
                Layout::Copied => cuda.seldom(HOPPER_GRADIENT, &defines),
            };
            let kernel = module.kernel("gradient")?;
            let name = format!("by weights, tiles of {} by {}", tiling.outputs(), tiling.rows);
            Ok::<_, CudaError>((tiling, kernel.called(&name)))
        };
        let both = |layout| Ok::<_, CudaError>([compile(layout, CHOICES[0])?, compile(layout, CHOICES[1])?]);
        Ok(Self { kernels: [both(Layout::InPlace)?, both(Layout::Copied)?] })
    }
}

/// What `hopper_gradient.cu` is compiled for.
#[cfg(test)]
pub(in crate::matmul) fn gradient_defines() -> impl Iterator<Item = Vec<Define>> {
    let layouts = [Layout::InPlace, Layout::Copied];
    layouts.into_iter().flat_map(|layout| CHOICES.map(|tiling| defines(tiling, layout)))
}

fn defines(tiling: Tiling, layout: Layout) -> Vec<Define> {
    let turned = i64::from(layout == Layout::InPlace);
    let mut defines = tiling.defines().to_vec();
    defines.extend([("WEIGHTS_TURNED", turned), ("ROWS_TURNED", turned)]);
    defines
}

/// Whether the copy engine takes rows of so many bf16 values.
pub(super) fn read_in_place(stride: usize) -> bool {
    stride.is_multiple_of(8)
}

impl ProductGradients {
    /// Adds `dy^T x` of the rows to the gradients: of one matrix `[dy.width, x.width]`, or of each expert's from its own
    /// rows. With `gated` the columns of `dy` are those of a matrix whose gates and ups take turns, and the gradients are
    /// first all gates', then all ups'.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn weights(
        &mut self,
        dy: Columns<'_>,
        x: Columns<'_>,
        rows: Rows<'_>,
        gated: bool,
        place: GradientPlace<'_>,
    ) -> Result<(), CudaError> {
        let (offsets, rows) = match rows {
            Rows::All(rows) => (None, rows),
            Rows::Grouped { offsets, most } => (Some(offsets), most),
        };
        let experts = offsets.map_or(1, |_| self.padded.len() - 1);
        assert!(
            offsets.is_none_or(|offsets| offsets.len() == self.padded.len()),
            "an offset for each expert"
        );
        dy.check(rows);
        x.check(rows);
        assert_eq!(dy.data.element(), x.data.element(), "number formats");
        let values = dy.width * x.width;
        assert!(place.at + (experts - 1) * place.stride + values <= place.gradients.len(), "room");
        assert!(experts == 1 || place.stride >= values, "matrices apart");
        let gates = if gated { dy.width / 2 } else { 0 };
        let call = Call { dy, x, offsets, experts, rows, gates, place, other: None };
        if rows == 0 {
            return if call.place.fresh { self.clear(call) } else { Ok(()) };
        }
        match &self.hopper {
            Some(_) if dy.data.element() == Element::Bf16 => self.on_tensor_cores(call),
            _ => self.on_ordinary_cores(call),
        }
    }

    /// [`ProductGradients::weights`] of two matrices and the same rows, on Hopper at once: the tiles of one begin where
    /// those of the other leave multiprocessors idle.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn weights_of_two(
        &mut self,
        [first, second]: [WeightGradient<'_>; 2],
        rows: usize,
        gradients: &mut Buffer<f32>,
        fresh: bool,
    ) -> Result<(), CudaError> {
        let maps = match &self.hopper {
            Some(_) if rows > 0 => {
                maps_in_place(&second.dy, &second.x, rows)?.filter(|_| first.can_be_read_in_place())
            }
            _ => None,
        };
        let WeightGradient { dy, x, at } = first;
        let Some(maps) = maps else {
            for WeightGradient { dy, x, at } in [first, second] {
                let place = GradientPlace { gradients: &mut *gradients, at, stride: 0, fresh };
                self.weights(dy, x, Rows::All(rows), false, place)?;
            }
            return Ok(());
        };
        for gradient in [first, second] {
            gradient.dy.check(rows);
            gradient.x.check(rows);
            let values = gradient.dy.width * gradient.x.width;
            assert!(gradient.at + values <= gradients.len(), "room");
        }
        let other = Other { maps, at: second.at, widths: [second.dy.width, second.x.width] };
        let place = GradientPlace { gradients, at, stride: 0, fresh };
        let call = Call { dy, x, offsets: None, experts: 1, rows, gates: 0, place, other: Some(other) };
        self.on_tensor_cores(call)
    }

    fn on_tensor_cores(&mut self, call: Call<'_>) -> Result<(), CudaError> {
        let Some(maps) = maps_in_place(&call.dy, &call.x, call.rows)? else { return self.of_copies(&call) };
        let offsets = call.offsets.map_or(0, |offsets| offsets.address(0));
        self.multiply(&call, &|_, _| Ok(maps), offsets, call.rows, Layout::InPlace)
    }

    /// Lays out the columns of both operands as rows, and multiplies those.
    fn of_copies(&mut self, call: &Call<'_>) -> Result<(), CudaError> {
        let Call { dy, x, offsets, experts, rows, .. } = call;
        let depth = depth(*rows, *experts);
        if (dy.width + x.width) * depth > self.operands.len() {
            self.operands = Buffer::zeroed(&self.cuda, (dy.width + x.width) * depth)?;
        }
        if let Some(offsets) = offsets {
            let arguments = [
                Argument::Pointer(offsets.address(0)),
                Argument::Pointer(self.padded.address(0)),
                Argument::I32(*experts as i32),
            ];
            // SAFETY: the kernel's arguments; both have a value for each expert and one more.
            unsafe { self.cuda.launch(&self.pad_offsets, LaunchShape::new(1, 32).overlap(), &arguments)? };
        }
        let second = dy.width * depth;
        self.lay_out(call, *dy, call.gates, 0)?;
        self.lay_out(call, *x, 0, second)?;
        let padded = offsets.map_or(0, |_| self.padded.address(0));
        let maps = |operands: &Buffer<u16>, tiling: Tiling| {
            Ok([
                TensorMap::bf16_at(operands, second, x.width, depth, tiling.outputs())?,
                TensorMap::bf16_at(operands, 0, dy.width, depth, tiling.row_box())?,
            ])
        };
        self.multiply(call, &maps, padded, depth, Layout::Copied)
    }

    /// Multiplies operands that the maps, of `x` and `dy`, describe, along `depth` rows or between the offsets.
    fn multiply(
        &mut self,
        call: &Call<'_>,
        maps: Maps<'_>,
        offsets: u64,
        depth: usize,
        layout: Layout,
    ) -> Result<(), CudaError> {
        let Call { dy, x, experts, place, .. } = call;
        let hopper = self.hopper.as_ref().expect("the caller has looked");
        let [large, small] = &hopper.kernels[layout as usize];
        let processors = self.cuda.facts().multiprocessors;
        let other = call.other.as_ref();
        let [other_rows, other_outputs] = other.map_or([0; 2], |other| other.widths);
        let tiles = |tiling: Tiling| {
            experts * tiling.tiles(dy.width, x.width) + tiling.tiles(other_rows, other_outputs)
        };
        // Of few rows a large tile would be mostly empty.
        let fills = dy.width > small.0.rows || call.other.is_some();
        let (tiling, kernel) = if fills && 2 * tiles(large.0) > processors { large } else { small };
        let [of_x, of_dy] = maps(&self.operands, *tiling)?;
        let blocks = tiles(*tiling).min(processors);
        let squares = self.squares.place(call.values(), blocks)?;
        let arguments = [
            Argument::Map(&of_x),
            Argument::Map(&of_dy),
            Argument::Pointer(place.gradients.address(place.at)),
            Argument::Pointer(offsets),
            Argument::I32(*experts as i32),
            Argument::I32(dy.width as i32),
            Argument::I32(x.width as i32),
            Argument::I32(depth as i32),
            // Copies have gates and ups in their places.
            Argument::I32(if layout == Layout::InPlace { call.gates as i32 } else { 0 }),
            Argument::I64(place.stride as i64),
            Argument::I32(i32::from(place.fresh)),
            // Without another matrix these are not read.
            Argument::Map(other.map_or(&of_x, |other| &other.maps[0])),
            Argument::Map(other.map_or(&of_dy, |other| &other.maps[1])),
            Argument::Pointer(other.map_or(0, |other| place.gradients.address(other.at))),
            Argument::I32(other_rows as i32),
            Argument::I32(other_outputs as i32),
            Argument::Pointer(squares),
        ];
        let shape = LaunchShape::new(blocks, tiling.threads()).shared(tiling.shared()).overlap();
        // SAFETY: the kernel's arguments, in order. Copies stay within the maps; `weights` or `weights_of_two` has checked
        // that the gradients of all matrices lie within the buffer, and there is a part of squares for each block.
        unsafe { self.cuda.launch(kernel, shape, &arguments) }
    }

    /// Columns as rows, from value `at` of the operands on.
    fn lay_out(
        &mut self,
        call: &Call<'_>,
        columns: Columns<'_>,
        gates: usize,
        at: usize,
    ) -> Result<(), CudaError> {
        let depth = depth(call.rows, call.experts);
        let (offsets, padded) = match call.offsets {
            Some(offsets) => (offsets.address(0), self.padded.address(0)),
            None => (0, 0),
        };
        let arguments = [
            Argument::Pointer(columns.data.address()),
            Argument::Pointer(self.operands.address(at)),
            Argument::Pointer(offsets),
            Argument::Pointer(padded),
            Argument::I32(call.experts as i32),
            Argument::I32(call.rows as i32),
            Argument::I32(columns.stride as i32),
            Argument::I32(columns.width as i32),
            Argument::I32(gates as i32),
            Argument::I32(depth as i32),
        ];
        let shape = LaunchShape::grid(depth / STEP, columns.width.div_ceil(TILE), 1, 256).overlap();
        // SAFETY: the kernel's arguments, in order. It reads rows below the offsets' last or `rows`, which `weights` has
        // checked, and writes `width * depth` values, for which there is room after `reserve`.
        unsafe { self.cuda.launch(&self.columns_as_rows, shape, &arguments) }
    }

    fn clear(&mut self, call: Call<'_>) -> Result<(), CudaError> {
        call.values().into_iter().try_for_each(|values| {
            self.squares.forget(&values)?;
            call.place.gradients.clear_range(values.start, values.len())
        })
    }

    fn on_ordinary_cores(&mut self, call: Call<'_>) -> Result<(), CudaError> {
        call.values().iter().try_for_each(|values| self.squares.forget(values))?;
        if call.is_narrow() {
            return self.of_few(call);
        }
        let Call { dy, x, offsets, experts, rows, gates, place, .. } = call;
        let values = dy.width * x.width;
        let tiles = dy.width.div_ceil(TILE) * x.width.div_ceil(TILE);
        // Few tiles of many rows would leave most of the card idle.
        let parts = match offsets {
            None if tiles < 2 * self.cuda.facts().multiprocessors => rows.div_ceil(PART).min(MOST_PARTS),
            _ => 1,
        };
        let part = rows.div_ceil(parts);
        let partial = parts > 1;
        if partial && self.parts.len() < parts * values {
            self.parts = Buffer::zeroed(&self.cuda, parts * values)?;
        }
        let target = place.gradients.address(place.at);
        let (out, stride) = match partial {
            true => (self.parts.address(0), values),
            false => (target, place.stride),
        };
        let arguments = [
            Argument::Pointer(dy.data.address()),
            Argument::Pointer(x.data.address()),
            Argument::Pointer(out),
            Argument::Pointer(offsets.map_or(0, |offsets| offsets.address(0))),
            Argument::I32(rows as i32),
            Argument::I32(dy.stride as i32),
            Argument::I32(dy.width as i32),
            Argument::I32(x.stride as i32),
            Argument::I32(x.width as i32),
            Argument::I32(gates as i32),
            Argument::I64(stride as i64),
            Argument::I32(part as i32),
            Argument::I32(i32::from(partial || place.fresh)),
        ];
        let blocks = if offsets.is_some() { experts } else { parts };
        let shape = LaunchShape::grid(x.width.div_ceil(TILE), dy.width.div_ceil(TILE), blocks, 256).overlap();
        let kernel = &self.portable[index(dy.data.element())];
        // SAFETY: the kernel's arguments, in order, for that element. It reads rows below `rows` or the offsets' last,
        // and writes as many matrices as there are blocks in the third direction: `weights` has checked the gradients,
        // and the parts were made large enough above.
        unsafe { self.cuda.launch(kernel, shape, &arguments)? };
        if !partial {
            return Ok(());
        }
        self.add(values, parts, target, place.fresh)
    }

    /// Few columns of f32 gradients, as a router's: all of them pass over the other rows at once, which are read once.
    fn of_few(&mut self, call: Call<'_>) -> Result<(), CudaError> {
        let Call { dy, x, rows, place, .. } = call;
        let values = dy.width * x.width;
        let parts = rows.div_ceil(FEW_PART).min(MOST_PARTS);
        let part = rows.div_ceil(parts);
        if self.parts.len() < parts * values {
            self.parts = Buffer::zeroed(&self.cuda, parts * values)?;
        }
        let arguments = [
            Argument::Pointer(dy.data.address()),
            Argument::Pointer(x.data.address()),
            Argument::Pointer(self.parts.address(0)),
            Argument::I32(rows as i32),
            Argument::I32(dy.stride as i32),
            Argument::I32(dy.width as i32),
            Argument::I32(x.stride as i32),
            Argument::I32(x.width as i32),
            Argument::I32(part as i32),
        ];
        let shape = LaunchShape::grid(x.width.div_ceil(512), dy.width.div_ceil(8), parts, 128).overlap();
        // SAFETY: the kernel's arguments, in order, for f32 and such widths. It reads rows below `rows`, which `weights`
        // has checked, and writes a matrix for each part, for which there is room.
        unsafe { self.cuda.launch(&self.few, shape, &arguments)? };
        self.add(values, parts, place.gradients.address(place.at), place.fresh)
    }

    /// Adds as many parts of so many values, in their order.
    fn add(&self, values: usize, parts: usize, target: u64, fresh: bool) -> Result<(), CudaError> {
        let arguments = [
            Argument::Pointer(self.parts.address(0)),
            Argument::Pointer(target),
            Argument::I32(values as i32),
            Argument::I32(parts as i32),
            Argument::I32(i32::from(fresh)),
        ];
        let shape = LaunchShape::new(values.div_ceil(256), 256).overlap();
        // SAFETY: the kernel's arguments; `parts` times `values` were just written.
        unsafe { self.cuda.launch(&self.add_parts, shape, &arguments) }
    }
}

/// Makes the maps of `x` and `dy`, of the copied operands or in place, for a tiling.
type Maps<'a> = &'a dyn Fn(&Buffer<u16>, Tiling) -> Result<[TensorMap; 2], CudaError>;

/// One gradient, checked.
struct Call<'a> {
    dy: Columns<'a>,
    x: Columns<'a>,
    offsets: Option<&'a Buffer<i32>>,
    experts: usize,
    rows: usize,
    gates: usize,
    place: GradientPlace<'a>,
    /// One more matrix, of rows that are read in place.
    other: Option<Other>,
}

struct Other {
    /// Of its inputs and of the gradients by its outputs, and their widths the other way round.
    maps: [TensorMap; 2],
    widths: [usize; 2],
    at: usize,
}

impl WeightGradient<'_> {
    fn can_be_read_in_place(&self) -> bool {
        [self.dy, self.x]
            .iter()
            .all(|columns| columns.data.element() == Element::Bf16 && read_in_place(columns.stride))
    }
}

/// Rows of inputs and of gradients by outputs as the tensor cores read them, where they do.
fn maps_in_place(
    dy: &Columns<'_>,
    x: &Columns<'_>,
    rows: usize,
) -> Result<Option<[TensorMap; 2]>, CudaError> {
    let map = |columns: &Columns<'_>| match columns.data {
        Values::Activations(Activations::Bf16(values)) if read_in_place(columns.stride) => {
            TensorMap::bf16_columns(values, rows, columns.width, columns.stride, STEP).map(Some)
        }
        _ => Ok(None),
    };
    Ok(map(x)?.zip(map(dy)?).map(|(x, dy)| [x, dy]))
}

impl Call<'_> {
    /// The gradients of all matrices.
    fn values(&self) -> Vec<Range<usize>> {
        let GradientPlace { at, stride, .. } = self.place;
        let count = self.dy.width * self.x.width;
        let of_experts = (0..self.experts).map(|expert| at + expert * stride..at + expert * stride + count);
        let of_other = self.other.iter().map(|other| other.at..other.at + other.widths[0] * other.widths[1]);
        of_experts.chain(of_other).collect()
    }

    /// Whether [`ProductGradients::of_few`] takes it.
    fn is_narrow(&self) -> bool {
        let Self { dy, x, offsets, gates, .. } = self;
        dy.data.element() == Element::F32
            && dy.width <= FEW_COLUMNS
            && x.width.is_multiple_of(4)
            && x.stride.is_multiple_of(4)
            && offsets.is_none()
            && *gates == 0
    }
}

/// Padded rows of all experts at most.
pub(super) fn depth(rows: usize, experts: usize) -> usize {
    let padding = if experts > 1 { experts * (STEP - 1) } else { 0 };
    (rows + padding).next_multiple_of(STEP)
}
