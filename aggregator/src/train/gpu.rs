//! Training on an NVIDIA GPU, where there is one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::{
    backend::{Autodiff, Cuda, cuda::CudaDevice},
    tensor::Tensor,
};

use super::{
    Dataset, Progress, TrainConfig, TrainError,
    fit::{BurnTrainer, Fitted, Trainer},
};

/// What it is called in manifests and messages.
const NAME: &str = "GPU (CUDA)";
/// The driver's library. The backend loads it by itself, and panics in a thread of its own when it
/// is missing.
const DRIVER: &std::ffi::CStr = c"libcuda.so.1";

/// Fits on the first GPU.
///
/// # Errors
/// [`TrainError::Backend`] when there is no driver, or one that does not compute or breaks
/// half-way; otherwise as [`Trainer::fit`].
pub(super) fn fit(
    dataset: &Dataset,
    config: &TrainConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Fitted, TrainError> {
    let broken = |text: String| TrainError::Backend { backend: NAME.to_owned(), text };
    if !driver_loads() {
        return Err(broken(format!("{} cannot be loaded", DRIVER.to_string_lossy())));
    }
    let device = CudaDevice::default();
    // The backend tells of a missing library or a lost device by panicking.
    catch_unwind(AssertUnwindSafe(|| {
        multiplies(&device).map_err(broken)?;
        BurnTrainer::<Autodiff<Cuda>>::new(NAME, device.clone()).fit(dataset, config, progress)
    }))
    .unwrap_or_else(|_panic| Err(broken("the backend panicked".to_owned())))
}

fn multiplies(device: &CudaDevice) -> Result<(), String> {
    let matrix = Tensor::<Cuda, 2>::full([4, 4], 0.5, device);
    let product = matrix.clone().matmul(matrix).into_data().convert::<f32>().into_vec::<f32>();
    match product {
        Ok(values) if values.iter().all(|value| (value - 1.0).abs() < 1e-3) => Ok(()),
        Ok(values) => Err(format!("it multiplies wrongly: {values:?}")),
        Err(error) => Err(format!("its memory cannot be read: {error:?}")),
    }
}

fn driver_loads() -> bool {
    // SAFETY: the name is a C string, and loading the driver runs nothing but its own
    // initialisers, which the backend would run next anyway. The handle stays open with it.
    let handle = unsafe { libc::dlopen(DRIVER.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    !handle.is_null()
}
