use super::*;

fn list(mut archive: &[u8]) -> Vec<(String, u32, usize)> {
    let mut entries = Vec::new();
    loop {
        let reader = cpio::newc::Reader::new(archive).unwrap();
        let entry = reader.entry();
        if entry.is_trailer() {
            return entries;
        }
        entries.push((
            entry.name().into(),
            entry.mode(),
            entry.file_size() as usize,
        ));
        archive = reader.finish().unwrap();
    }
}

#[test]
fn the_agent_is_a_static_program_and_init() {
    let entries = list(&agent_archive().unwrap());
    assert_eq!(entries[1].0, "dev/console");
    assert_eq!(entries[2], ("init".into(), 0o100755, AGENT.len()));
    let elf = object::File::parse(AGENT).unwrap();
    use object::{Object, ObjectSection};
    assert!(
        elf.sections().all(|s| s.name() != Ok(".interp")),
        "it is not static"
    );
}

#[test]
fn modules_are_listed_in_order() {
    let modules = ["b.ko", "a.ko"].map(|name| Module {
        file_name: name.into(),
        bytes: name.as_bytes().to_vec(),
    });
    let archive = modules_archive(&modules).unwrap();
    let names: Vec<_> = list(&archive)
        .into_iter()
        .map(|(name, _, _)| name)
        .collect();
    assert_eq!(
        names,
        ["modules", "modules/b.ko", "modules/a.ko", "modules/order"]
    );
    let text = String::from_utf8_lossy(&archive).into_owned();
    assert!(text.contains("b.ko\na.ko\n"));
}
