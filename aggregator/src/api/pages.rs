//! The dashboard's files, part of the program.

use axum::{Router, http::header, response::IntoResponse, routing::get};

use super::View;

const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("../dashboard/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("../dashboard/app.js")),
    ("/charts.js", "text/javascript; charset=utf-8", include_str!("../dashboard/charts.js")),
    ("/style.css", "text/css; charset=utf-8", include_str!("../dashboard/style.css")),
    (
        "/vendor/uPlot.iife.min.js",
        "text/javascript; charset=utf-8",
        include_str!("../dashboard/vendor/uPlot.iife.min.js"),
    ),
    (
        "/vendor/uPlot.min.css",
        "text/css; charset=utf-8",
        include_str!("../dashboard/vendor/uPlot.min.css"),
    ),
];
const ICON: &str = include_str!("../dashboard/icon.svg");

pub(super) fn router() -> Router<View> {
    let mut router = Router::new().route("/favicon.ico", get(icon)).route("/icon.svg", get(icon));
    for (path, kind, text) in FILES {
        router = router.route(
            path,
            get(async move || {
                let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
                (headers, text).into_response()
            }),
        );
    }
    router
}

async fn icon() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "image/svg+xml")], ICON)
}
