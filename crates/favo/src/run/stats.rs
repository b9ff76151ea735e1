//! `favo run --stats`: what engine and devices counted, when the machine has
//! ended.

use favo_accel::EventCounter;

use crate::output::table;

/// Prints counters on standard error: standard output is the guest's.
pub(super) fn print(counters: &[(String, EventCounter)]) {
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
