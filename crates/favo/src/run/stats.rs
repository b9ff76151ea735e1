//! `favo run --stats`: what engine, devices and network counted, when the
//! machine has ended.

use favo_accel::EventCounter;

use super::network::Attachment;
use crate::output::table;

/// Prints counters on standard error: standard output is the guest's.
pub(super) fn print(mut counters: Vec<(String, EventCounter)>, attachment: &Attachment) {
    counters.extend(attachment.counters());
    let mut table = table(&["FROM", "WHAT", "DETAIL", "COUNT"]);
    for (whose, counter) in counters.iter().filter(|(_, counter)| counter.count > 0) {
        table.add_row([
            whose.clone(),
            counter.name.to_owned(),
            counter.detail.clone().unwrap_or_default(),
            counter.count.to_string(),
        ]);
    }
    eprintln!("{table}");
}
