//! How lists and objects are printed: a table for people, JSON for programs.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// The form of a command's output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: an array for a list, an object for one thing.
    Json,
}

/// The option every listing command has.
#[derive(clap::Args)]
pub struct FormatArgs {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Prints a list. A table has one row per item, made by `row`.
pub fn print_list<T: Serialize>(
    format: Format,
    items: &[T],
    headings: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), serde_json::Error> {
    match format {
        Format::Json => print_json(&items)?,
        Format::Table => {
            let mut table = table(headings);
            table.add_rows(items.iter().map(&row));
            print_line(&table.trim_fmt());
        }
    }
    Ok(())
}

/// An empty table without lines.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    table
}

/// Prints one thing as JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), serde_json::Error> {
    print_line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints to standard output. A reader that went away (`favo … | head`) is
/// not an error.
pub fn print_line(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
