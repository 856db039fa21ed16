//! Progress bars, on standard error and only where that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that counts bytes.
pub fn bytes_bar(message: impl Into<String>, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "{msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left",
    )
    .expect("the template is valid");
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(message.into());
    bar
}

/// A bar that counts steps, of which some are done.
pub fn steps_bar(total: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("step {pos}/{len} [{wide_bar}] {msg}, {eta} left")
        .expect("the template is valid");
    bar.set_style(style.progress_chars("=> "));
    bar.with_position(done)
}
