use super::*;

#[test]
fn reads_a_disk_argument() {
    let disk: DiskArgument = "data.img,ro".parse().unwrap();
    assert!(disk.read_only && disk.format == Format::Raw && disk.file == Path::new("data.img"));
    let disk: DiskArgument = "data.qcow2".parse().unwrap();
    assert!(!disk.read_only && disk.format == Format::Qcow2);
    let disk: DiskArgument = "data,format=qcow2".parse().unwrap();
    assert_eq!(disk.format, Format::Qcow2);
    assert!("data,rw".parse::<DiskArgument>().unwrap_err().contains("'rw' is not known"));
}
