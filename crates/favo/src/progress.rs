//! Progress on a terminal; nothing in a pipe.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use favo_image::Progress;
use favo_types::ByteCount;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Draws the stages of long work on standard error, each on a line.
pub struct TerminalProgress {
    bar: Mutex<ProgressBar>,
    cancelled: Arc<AtomicBool>,
}

impl TerminalProgress {
    /// Hidden unless standard error is a terminal. Ctrl-C cancels the work,
    /// which then cleans up behind itself.
    pub fn new() -> std::io::Result<Self> {
        let cancelled = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // A second one ends the program at once.
            signal_hook::flag::register_conditional_default(signal, cancelled.clone())?;
            signal_hook::flag::register(signal, cancelled.clone())?;
        }
        Ok(Self {
            bar: Mutex::new(ProgressBar::hidden()),
            cancelled,
        })
    }

    fn bar(&self) -> ProgressBar {
        self.bar
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends the last stage.
    pub fn finish(&self) {
        self.bar().finish();
    }
}

impl Progress for TerminalProgress {
    fn stage(&self, name: &str, total: Option<ByteCount>) {
        let (template, length) = match total {
            Some(total) => (
                "{spinner} {msg} {wide_bar} {bytes}/{total_bytes}",
                Some(total.bytes()),
            ),
            None => ("{spinner} {msg} {elapsed:.dim}", None),
        };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
        bar.set_style(style);
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        let mut current = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        current.finish();
        *current = bar;
    }

    fn done(&self, done: ByteCount) {
        self.bar().set_position(done.bytes());
    }

    fn note(&self, text: &str) {
        let bar = self.bar();
        if bar.is_hidden() {
            tracing::info!("{text}");
        } else {
            bar.println(text);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
