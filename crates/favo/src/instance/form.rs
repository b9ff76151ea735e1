//! The forms lists and objects are printed in.

use serde::Serialize;

use crate::Failure;
use crate::output::{print_json, print_line, table};

/// The form of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Table,
    /// The same with more columns.
    Wide,
    /// An array for a list, an object for one thing.
    Json,
    /// An object a line.
    Jsonl,
    /// YAML.
    Yaml,
    /// The columns of wide, separated by commas (RFC 4180).
    Csv,
    /// Names, one a line.
    Name,
}

/// The option every command has that prints something.
#[derive(clap::Args)]
pub struct FormArgs {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub output: Form,
}

/// A column: its heading, whether only wide tables have it, and its text.
pub type Column<'a, T> = (&'a str, bool, &'a dyn Fn(&T) -> String);

/// Prints a list; the first column is the name.
pub fn print_list<T: Serialize>(
    form: Form,
    items: &[T],
    columns: &[Column<'_, T>],
) -> Result<(), Failure> {
    let shown = || {
        let is_shown = |(_, wide, _): &&Column<'_, T>| form != Form::Table || !wide;
        columns.iter().filter(is_shown)
    };
    let row = |item: &T| shown().map(|(.., text)| text(item)).collect::<Vec<_>>();
    match form {
        Form::Json => print_json(&items)?,
        Form::Jsonl => {
            for item in items {
                print_line(&serde_json::to_string(item)?);
            }
        }
        Form::Yaml => print_line(serde_yaml_ng::to_string(&items)?.trim_end()),
        Form::Name => {
            for item in items {
                print_line(&row(item)[0]);
            }
        }
        Form::Csv => {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(shown().map(|(heading, ..)| heading.replace(' ', "_")))?;
            for item in items {
                writer.write_record(row(item))?;
            }
            let bytes = writer.into_inner().map_err(Failure::new)?;
            print_line(String::from_utf8_lossy(&bytes).trim_end());
        }
        Form::Table | Form::Wide => {
            let headings: Vec<&str> = shown().map(|(heading, ..)| *heading).collect();
            let mut table = table(&headings);
            table.add_rows(items.iter().map(row));
            print_line(&table.trim_fmt());
        }
    }
    Ok(())
}

/// Prints one thing; a table has a row a column.
pub fn print_one<T: Serialize>(
    form: Form,
    item: &T,
    columns: &[Column<'_, T>],
) -> Result<(), Failure> {
    match form {
        Form::Json => print_json(item)?,
        Form::Yaml => print_line(serde_yaml_ng::to_string(item)?.trim_end()),
        Form::Table | Form::Wide => {
            let longest = columns.iter().map(|(heading, ..)| heading.len()).max();
            for (heading, _, text) in columns {
                let text = text(item);
                if !text.is_empty() {
                    let width = longest.unwrap_or_default() + 2;
                    print_line(&format!("{heading:width$}{text}"));
                }
            }
        }
        Form::Jsonl | Form::Csv | Form::Name => {
            print_list(form, std::slice::from_ref(item), columns)?;
        }
    }
    Ok(())
}
