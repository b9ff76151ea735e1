use super::*;

fn with(variables: &[(&str, &str)], is_root: bool) -> Option<PathBuf> {
    choose(
        |name| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value.into())
        },
        is_root,
    )
}

#[test]
fn each_rule_has_its_place() {
    let home = ("HOME", "/home/ann");
    let data = ("XDG_DATA_HOME", "/data");
    let own = ("FAVO_STATE_DIR", "/srv/favo");
    assert_eq!(
        with(&[home], false),
        Some("/home/ann/.local/share/favo".into())
    );
    assert_eq!(with(&[home, data], false), Some("/data/favo".into()));
    assert_eq!(
        with(&[home, ("XDG_DATA_HOME", "relative")], false),
        Some("/home/ann/.local/share/favo".into())
    );
    assert_eq!(with(&[home, data], true), Some("/var/lib/favo".into()));
    assert_eq!(with(&[home, data, own], true), Some("/srv/favo".into()));
    assert_eq!(with(&[home, data, own], false), Some("/srv/favo".into()));
    assert_eq!(
        with(&[home, ("FAVO_STATE_DIR", "")], true),
        Some("/var/lib/favo".into())
    );
    assert_eq!(with(&[], false), None);
}
