use std::collections::BTreeMap;

use super::*;

#[test]
fn file_names_become_module_names() {
    assert_eq!(
        name_of_file("virtio-rng.ko.xz").as_deref(),
        Some("virtio_rng")
    );
    assert_eq!(name_of_file("ext4.ko").as_deref(), Some("ext4"));
    assert_eq!(name_of_file("modules.dep"), None);
    assert_eq!(name_of_file("a.kotlin"), None);
}

#[test]
fn soft_dependencies_are_read() {
    assert_eq!(soft_before("pre: a b-c post: d pre: e"), ["a", "b_c", "e"]);
    assert!(soft_before("post: a").is_empty());
}

/// An ELF file with nothing but a .modinfo section.
fn module(modinfo: &str) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let info_at = 64;
    let names_at = info_at + modinfo.len();
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([1, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([0; 16]);
    elf.extend((sections_at as u64).to_le_bytes());
    elf.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
    elf.extend(modinfo.as_bytes());
    elf.extend(names);
    elf.resize(sections_at, 0);
    elf.extend([0; 64]);
    for (name, kind, offset, size) in [
        (1u32, 1u32, info_at, modinfo.len()),
        (10, 3, names_at, names.len()),
    ] {
        elf.extend(name.to_le_bytes());
        elf.extend(kind.to_le_bytes());
        elf.extend([0; 16]);
        elf.extend((offset as u64).to_le_bytes());
        elf.extend((size as u64).to_le_bytes());
        elf.extend([0; 8]);
        elf.extend(1u64.to_le_bytes());
        elf.extend([0; 8]);
    }
    elf
}

struct Files {
    modules: BTreeMap<String, Vec<u8>>,
    built_in: Vec<&'static str>,
}

impl ModuleFiles for Files {
    fn read(&mut self, name: &str) -> Result<Option<(String, Vec<u8>)>, ImageError> {
        let file = self.modules.get(name);
        Ok(file.map(|bytes| (format!("{name}.ko"), bytes.clone())))
    }
    fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(&name)
    }
}

fn files(modules: &[(&str, &str)]) -> Files {
    Files {
        modules: modules
            .iter()
            .map(|(name, info)| (name.to_string(), module(info)))
            .collect(),
        built_in: vec!["ext4"],
    }
}

fn names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|m| m.file_name.as_str()).collect()
}

#[test]
fn dependencies_come_first_and_once() {
    let mut files = files(&[
        ("virtio_pci", "license=GPL\0depends=virtio_ring,virtio\0"),
        ("virtio_ring", "depends=virtio\0"),
        ("virtio", "depends=\0"),
        (
            "virtio_blk",
            "softdep=pre: helper absent\0depends=virtio_ring\0",
        ),
        ("helper", "\0"),
    ]);
    assert_eq!(
        names(&needed(&mut files).unwrap()),
        [
            "virtio.ko",
            "virtio_ring.ko",
            "virtio_pci.ko",
            "helper.ko",
            "virtio_blk.ko"
        ]
    );
}

#[test]
fn a_cycle_ends() {
    let mut files = files(&[
        ("virtio_pci", "depends=virtio_blk\0"),
        ("virtio_blk", "depends=virtio_pci\0"),
    ]);
    assert_eq!(needed(&mut files).unwrap().len(), 2);
}

#[test]
fn what_is_missing_is_named() {
    let error = needed(&mut files(&[("virtio_pci", "\0")])).unwrap_err();
    assert!(error.to_string().contains("virtio_blk"), "{error}");
    let mut files = files(&[("virtio_pci", "depends=gone\0")]);
    let error = needed(&mut files).unwrap_err();
    assert!(error.to_string().contains("needs gone"), "{error}");
}

#[test]
fn what_is_no_module_is_an_error() {
    let mut files = files(&[]);
    files
        .modules
        .insert("virtio_pci".into(), b"not ELF".to_vec());
    assert!(matches!(
        needed(&mut files),
        Err(ImageError::Content { .. })
    ));
}
