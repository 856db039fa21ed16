//! Gradients of the mixture on a GPU (`backward.cu`), and the load-balancing loss.

use std::sync::Arc;

use super::DeviceRouting;
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source,
};
use crate::matmul::Element;
use crate::matmul::cuda::DeviceRows;

/// The kernels.
pub const GRADIENTS: Source = Source { name: "moe/backward.cu", text: include_str!("../backward.cu") };

/// Rows of a part of the load-balancing loss; as in `backward.cu`.
const BALANCE_ROWS: usize = 64;

/// What the kernels are compiled for.
#[must_use]
pub fn gradient_defines(activations: Element) -> [Define; 1] {
    [("ACTIVATIONS_BF16", i64::from(activations == Element::Bf16))]
}

/// The compiled kernels for one mixture.
pub struct MixtureGradients {
    cuda: Arc<Cuda>,
    activations: Element,
    experts: usize,
    choices: usize,
    weigh: Kernel,
    swiglu_backward: Kernel,
    shared_backward: Kernel,
    router_backward: Kernel,
    balance_add: Kernel,
    balance_slopes: Kernel,
}

/// The load-balancing loss (see [`BalanceLoss`](crate::moe::BalanceLoss)) as it adds up on the device.
pub struct DeviceBalance {
    rows: usize,
    experts: usize,
    /// Sums of the probabilities in some rows, `[_, experts]`.
    parts: Buffer<f64>,
    counts: Buffer<i64>,
    slopes: Buffer<f32>,
}

impl DeviceBalance {
    /// Of nothing yet; for layers of up to `rows` rows.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn new(cuda: &Arc<Cuda>, experts: usize, rows: usize) -> Result<Self, CudaError> {
        Ok(Self {
            rows: 0,
            experts,
            parts: Buffer::zeroed(cuda, rows.div_ceil(BALANCE_ROWS) * experts)?,
            counts: Buffer::zeroed(cuda, experts)?,
            slopes: Buffer::zeroed(cuda, experts)?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.parts.bytes() + self.counts.bytes() + self.slopes.bytes()
    }

    /// Forgets all layers.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn clear(&mut self) -> Result<(), CudaError> {
        self.rows = 0;
        self.parts.clear()?;
        self.counts.clear()
    }

    /// The loss of all layers added; 0 without any. Waits for the device.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    pub fn loss(&self) -> Result<f64, CudaError> {
        let rows = self.rows.max(1) as f64;
        let (counts, parts) = (self.counts.to_vec()?, self.parts.to_vec()?);
        let mut probabilities = vec![0.0; self.experts];
        for part in parts.chunks_exact(self.experts) {
            probabilities.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        let terms = counts.iter().zip(&probabilities);
        let sum: f64 = terms.map(|(count, p)| *count as f64 / rows * p / rows).sum();
        Ok(counts.len() as f64 * sum)
    }
}

/// Rows of gates and ups of an MLP, and what comes of them.
pub struct Swiglu<'a> {
    /// Gates and ups in turn, in groups of [`GATE_GROUP`](crate::matmul::cuda::GATE_GROUP), `[rows, 2 width]`.
    pub pre: &'a Activations,
    /// Gradient by the inner activations, `[rows, width]`.
    pub dinner: &'a Activations,
    /// Where the number of rows is on the device, if only there.
    pub end: Option<(&'a Buffer<i32>, usize)>,
    /// Rows at most.
    pub rows: usize,
    /// Inner width.
    pub width: usize,
    /// Gradient by `pre`.
    pub dpre: &'a mut Activations,
    /// Of each row the product of the inner activations and their gradient, `[rows]`: where the gradient was weighed,
    /// the derivative by the weight, times that.
    pub dots: &'a mut Buffer<f32>,
}

/// A shared MLP beside the experts, as gradients are weighed for it.
pub struct SharedRows<'a> {
    /// Its coefficients before the sigmoid, `[rows]`.
    pub coefficients: &'a Buffer<f32>,
    /// The gradient by the output times the sigmoid of a row's coefficient, `[rows, hidden]`.
    pub dout: &'a mut DeviceRows,
}

impl MixtureGradients {
    /// Compiles them.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(
        cuda: &Arc<Cuda>,
        activations: Element,
        experts: usize,
        choices: usize,
    ) -> Result<Self, CudaError> {
        let module = cuda.module(GRADIENTS, &gradient_defines(activations));
        Ok(Self {
            cuda: Arc::clone(cuda),
            activations,
            experts,
            choices,
            weigh: module.kernel("weigh")?,
            swiglu_backward: module.kernel("swiglu_backward")?,
            shared_backward: module.kernel("shared_backward")?,
            router_backward: module.kernel("router_backward")?,
            balance_add: module.kernel("balance_add")?,
            balance_slopes: module.kernel("balance_slopes")?,
        })
    }

    fn check(&self, routing: &DeviceRouting, rows: usize) {
        let choices = rows * self.choices;
        assert!(
            routing.places.len() >= choices && routing.weights.len() >= choices,
            "choices of {rows} rows"
        );
        assert!(routing.offsets.len() == self.experts + 1, "experts of the routing");
        assert!(routing.logits.len() >= rows * self.experts, "logits of {rows} rows");
    }

    /// Weighs the gradient by the output, `dout[rows, hidden]`: the packed row of each choice gets it times the choice's
    /// weight, and times what a shared MLP leaves of that. Packed rows of no choice are left alone.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree, or the width is no multiple of 8.
    pub fn weigh(
        &self,
        dout: &DeviceRows,
        routing: &DeviceRouting,
        rows: usize,
        shared: Option<SharedRows<'_>>,
        out: &mut DeviceRows,
    ) -> Result<(), CudaError> {
        self.check(routing, rows);
        let width = dout.k();
        assert!(width.is_multiple_of(8) && out.k() == width, "rows of {width} and {}", out.k());
        assert!(dout.rows() >= rows && out.rows() >= rows * self.choices, "room for {rows} rows");
        assert!(
            shared.as_ref().is_none_or(|shared| {
                shared.coefficients.len() >= rows && shared.dout.rows() >= rows && shared.dout.k() == width
            }),
            "shared rows"
        );
        for rows in
            [Some(dout), Some(&*out), shared.as_ref().map(|shared| &*shared.dout)].into_iter().flatten()
        {
            assert_eq!(rows.data().element(), self.activations, "element of the gradients");
        }
        let arguments = [
            Argument::Pointer(dout.data().address(0)),
            Argument::Pointer(routing.places.address(0)),
            Argument::Pointer(routing.weights.address(0)),
            Argument::Pointer(shared.as_ref().map_or(0, |shared| shared.coefficients.address(0))),
            Argument::Pointer(out.data().address(0)),
            Argument::Pointer(shared.as_ref().map_or(0, |shared| shared.dout.data().address(0))),
            Argument::I32(rows as i32),
            Argument::I32(width as i32),
            Argument::I32(self.choices as i32),
        ];
        let shape = LaunchShape::new(rows.div_ceil(8), 256).overlap();
        // SAFETY: the kernel's arguments, in order; sizes were checked, and places are below `rows * choices` or negative,
        // as moe.cu writes them.
        unsafe { self.cuda.launch(&self.weigh, shape, &arguments) }
    }

    /// Through `silu(gate) * up` of every row.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn swiglu_backward(&self, swiglu: Swiglu<'_>) -> Result<(), CudaError> {
        let Swiglu { pre, dinner, end, rows, width, dpre, dots } = swiglu;
        let room = rows * width;
        assert!(width.is_multiple_of(8), "an inner width of {width}");
        assert!(pre.len() >= 2 * room && dpre.len() >= 2 * room, "gates and ups of {rows} rows");
        assert!(dinner.len() >= room && dots.len() >= rows, "room for {rows} rows");
        for element in [pre.element(), dinner.element(), dpre.element()] {
            assert_eq!(element, self.activations, "element of the activations");
        }
        let arguments = [
            Argument::Pointer(pre.address(0)),
            Argument::Pointer(dinner.address(0)),
            Argument::Pointer(end.map_or(0, |(end, at)| end.address(at))),
            Argument::I32(width as i32),
            Argument::Pointer(dpre.address(0)),
            Argument::Pointer(dots.address(0)),
        ];
        let shape = LaunchShape::new(rows, (width / 8).next_multiple_of(32).clamp(32, 512)).overlap();
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above.
        unsafe { self.cuda.launch(&self.swiglu_backward, shape, &arguments) }
    }

    /// The derivative by a shared MLP's coefficients before the sigmoid, from the dots of the packed rows and of the shared
    /// rows, whose gradients were weighed.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn shared_backward(
        &self,
        routing: &DeviceRouting,
        rows: usize,
        dots: &Buffer<f32>,
        shared_dots: &Buffer<f32>,
        coefficients: &Buffer<f32>,
        dcoefficients: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        self.check(routing, rows);
        assert!(dots.len() >= rows * self.choices, "derivatives of {rows} rows");
        for buffer in [shared_dots, coefficients, &*dcoefficients] {
            assert!(buffer.len() >= rows, "a value for each of {rows} rows");
        }
        let arguments = [
            Argument::Pointer(routing.places.address(0)),
            Argument::Pointer(dots.address(0)),
            Argument::Pointer(shared_dots.address(0)),
            Argument::Pointer(coefficients.address(0)),
            Argument::Pointer(dcoefficients.address(0)),
            Argument::I32(rows as i32),
            Argument::I32(self.choices as i32),
        ];
        let shape = LaunchShape::new(rows.div_ceil(256), 256).overlap();
        // SAFETY: the kernel's arguments, in order; sizes were checked, places are as in `weigh`.
        unsafe { self.cuda.launch(&self.shared_backward, shape, &arguments) }
    }

    /// The gradient by the router's logits, `[rows, experts]`, from the dots of the packed rows, whose gradients were
    /// weighed; with `balance`, that of the load-balancing loss too (see [`MixtureGradients::balance_slopes`]).
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn router_backward(
        &self,
        routing: &DeviceRouting,
        rows: usize,
        dots: &Buffer<f32>,
        balance: Option<&DeviceBalance>,
        dlogits: &mut Activations,
    ) -> Result<(), CudaError> {
        self.check(routing, rows);
        assert!(dots.len() >= rows * self.choices && dlogits.len() >= rows * self.experts, "room");
        assert_eq!(dlogits.element(), Element::F32, "element of the logits");
        let arguments = [
            Argument::Pointer(routing.logits.address(0)),
            Argument::Pointer(routing.chosen.address(0)),
            Argument::Pointer(routing.weights.address(0)),
            Argument::Pointer(routing.places.address(0)),
            Argument::Pointer(dots.address(0)),
            Argument::Pointer(balance.map_or(0, |balance| balance.slopes.address(0))),
            Argument::Pointer(dlogits.address(0)),
            Argument::I32(rows as i32),
            Argument::I32(self.experts as i32),
            Argument::I32(self.choices as i32),
        ];
        let shape = LaunchShape::new(rows.div_ceil(8), 256).overlap();
        // SAFETY: the kernel's arguments, in order; sizes were checked, places are as in `weigh`.
        unsafe { self.cuda.launch(&self.router_backward, shape, &arguments) }
    }

    /// Adds a layer's routing to the load-balancing loss.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn balance_add(
        &self,
        routing: &DeviceRouting,
        rows: usize,
        balance: &mut DeviceBalance,
    ) -> Result<(), CudaError> {
        self.check(routing, rows);
        let blocks = rows.div_ceil(BALANCE_ROWS);
        assert!(balance.parts.len() >= blocks * self.experts, "room for parts of {rows} rows");
        assert_eq!(balance.counts.len(), self.experts, "experts of the loss");
        let arguments = [
            Argument::Pointer(routing.logits.address(0)),
            Argument::Pointer(routing.offsets.address(0)),
            Argument::Pointer(balance.parts.address(0)),
            Argument::Pointer(balance.counts.address(0)),
            Argument::I32(rows as i32),
            Argument::I32(self.experts as i32),
        ];
        let shape = LaunchShape::new(blocks, 256).shared(8 * 8 * self.experts).overlap();
        // SAFETY: the kernel's arguments, in order; sizes were checked above, and there is an offset for every expert and
        // the end.
        unsafe { self.cuda.launch(&self.balance_add, shape, &arguments)? };
        balance.rows += rows;
        Ok(())
    }

    /// Makes the gradient of `coefficient` times the load-balancing loss ready, once all layers were added.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn balance_slopes(&self, balance: &mut DeviceBalance, coefficient: f32) -> Result<(), CudaError> {
        let rows = balance.rows.max(1) as f64;
        let scale = f64::from(coefficient) * self.experts as f64 / (rows * rows);
        let arguments = [
            Argument::Pointer(balance.counts.address(0)),
            Argument::Pointer(balance.slopes.address(0)),
            Argument::I32(self.experts as i32),
            Argument::F32(scale as f32),
        ];
        // SAFETY: the kernel's arguments; `new` has made both with a value for every expert.
        unsafe { self.cuda.launch(&self.balance_slopes, LaunchShape::new(1, 256).overlap(), &arguments) }
    }
}
