use super::*;

#[test]
fn a_disk_is_a_file_and_maybe_read_only() {
    let disk: DiskArgument = "/a,b.img,ro".parse().unwrap();
    assert_eq!(disk.file, PathBuf::from("/a,b.img"));
    assert!(!disk.is_writable());
    assert!("x.img".parse::<DiskArgument>().unwrap().is_writable());
    assert!(",ro".parse::<DiskArgument>().is_err());
}
