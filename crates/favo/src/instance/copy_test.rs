use super::*;

#[test]
fn only_a_name_before_a_colon_is_an_instance() {
    assert_eq!(End::of("web:/srv"), End::Instance("web", "/srv"));
    assert_eq!(End::of("web:"), End::Instance("web", ""));
    assert_eq!(End::of("./web:/srv"), End::Here(Path::new("./web:/srv")));
    assert_eq!(End::of(":x"), End::Here(Path::new(":x")));
    assert_eq!(End::of("file"), End::Here(Path::new("file")));
}

#[test]
fn a_path_has_a_directory_and_a_last_name() {
    let split = |path| {
        split(path)
            .map(|(parent, last)| format!("{parent}|{last}"))
            .ok()
    };
    assert_eq!(split("/srv/www/").as_deref(), Some("/srv|www"));
    assert_eq!(split("/etc").as_deref(), Some("/|etc"));
    assert_eq!(split("file").as_deref(), Some(".|file"));
    for nothing in ["", "/", ".", "a/..", "//"] {
        assert_eq!(split(nothing), None, "{nothing}");
    }
}
