"""Small archives in the raw formats of public logs, as their documentation describes them."""

import io
import tarfile
import zipfile

import numpy as np
import pandas as pd

USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
BEIJING = "Asia/Shanghai"


def write_tar(path, folder, files):
    """A tar.gz with these frames or bytes, beside files that are not read."""
    with tarfile.open(path, "w:gz") as archive:
        for name, contents in {"load_data.py": b"raise SystemExit", **files}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            contents = as_bytes(contents)
            info.size = len(contents)
            archive.addfile(info, io.BytesIO(contents))
    return path


def write_zip(path, folder, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in {"README.md": b"# notes", **files}.items():
            archive.writestr(f"{folder}/{name}", as_bytes(contents))
    return path


def write_folder(path, files):
    for name, contents in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(as_bytes(contents))
    return path


def as_bytes(contents):
    return contents if isinstance(contents, bytes) else contents.to_csv(index=False).encode()


# --- Kuaishou


def kuaishou_users(rng, users):
    frame = {"user_id": np.arange(users)}
    frame["user_active_degree"] = rng.choice(["full_active", "high_active", "UNKNOWN"], users)
    for name in ("is_lowactive_period", "is_live_streamer", "is_video_author"):
        frame[name] = np.arange(users) % 2
    for name in USER_NUMBERS:
        frame[name] = rng.integers(0, 500, users)
        frame[f"{name}_range"] = rng.choice(["0", "(0,10]"], users)
    for n in range(18):
        frame[f"onehot_feat{n}"] = (np.arange(users) * (n % 2 + 1) + n) % 3
    frame = pd.DataFrame(frame)
    # as in the real file, one that has holes is written as floats
    frame.loc[::4, "onehot_feat4"] = None
    return frame


def kuairand(rng, version="pure", rows=900):
    """The files of KuaiRand: a row every hour of the days of each log."""
    files = {}
    users, videos = 12, 15
    for log, (first, last) in {
        "log_standard_4_08_to_4_21": ("2022-04-08", "2022-04-22"),
        "log_standard_4_22_to_5_08": ("2022-04-22", "2022-05-09"),
        "log_random_4_22_to_5_08": ("2022-04-22", "2022-05-09"),
    }.items():
        local = pd.date_range(first, last, rows + 1, tz=BEIJING)[:-1].round("ms")
        play = rng.integers(0, 60_000, rows)
        duration = rng.integers(5_000, 40_000, rows)
        frame = {
            "user_id": rng.integers(0, users, rows),
            "video_id": rng.integers(0, videos, rows),
            "date": local.strftime("%Y%m%d").astype(int),
            "hourmin": local.hour * 100,
            "time_ms": local.tz_convert("UTC")
            .tz_localize(None)
            .astype("datetime64[ms]")
            .astype(int),
            "is_click": (play > 7_000).astype(int),
        }
        for name in ("is_like", "is_follow", "is_comment", "is_forward", "is_hate"):
            frame[name] = rng.integers(0, 2, rows)
        frame["long_view"] = (play >= np.minimum(duration, 18_000)).astype(int)
        frame |= {"play_time_ms": play, "duration_ms": duration}
        frame |= {"profile_stay_time": play // 7, "comment_stay_time": play // 9}
        frame |= {"is_profile_enter": rng.integers(0, 2, rows)}
        frame |= {"is_rand": int("random" in log), "tab": rng.integers(0, 3, rows)}
        files[f"{log}_{version}.csv"] = pd.DataFrame(frame)
    files[f"user_features_{version}.csv"] = kuaishou_users(rng, users)
    number = np.arange(videos - 1)  # the last video is not described
    files[f"video_features_basic_{version}.csv"] = pd.DataFrame(
        {
            "video_id": number,
            "author_id": number // 2,
            "video_type": np.where(number % 2, "NORMAL", "AD"),
            "upload_dt": "2022-04-01",
            "upload_type": np.where(number % 3, "ShortImport", "LongImport"),
            "visible_status": 1,
            "video_duration": 17200.0,
            "server_width": 720,
            "server_height": 1280,
            "music_id": 989206467000 + number % 4,
            "music_type": 4.0,
            "tag": [None if n == 3 else "12,65" if n % 2 else "7" for n in number],
        }
    )
    files[f"video_features_statistic_{version}.csv"] = pd.DataFrame(
        {"video_id": number, "like_cnt": 9}
    )
    return {f"data/{name}": frame for name, frame in files.items()}


def kuairec(rng, rows=900):
    users, videos = 12, 15
    files = {}
    for matrix in ("big_matrix", "small_matrix"):
        local = pd.date_range("2020-07-04", "2020-09-05", rows, tz=BEIJING)
        duration = rng.integers(5_000, 40_000, rows)
        play = rng.integers(0, 100_000, rows)
        frame = pd.DataFrame(
            {
                "user_id": rng.integers(0, users, rows),
                "video_id": rng.integers(0, videos, rows),
                "play_duration": play,
                "video_duration": duration,
                "time": local.strftime("%Y-%m-%d %H:%M:%S.123"),
                "date": local.strftime("%Y%m%d").astype(int),
                "timestamp": local.tz_convert("UTC")
                .tz_localize(None)
                .astype("datetime64[us]")
                .astype(int)
                / 1e6,
                "watch_ratio": play / duration,
            }
        )
        if matrix == "small_matrix":
            frame.loc[::25, ["time", "date", "timestamp"]] = None
        files[f"{matrix}.csv"] = frame.sample(frac=1, random_state=1)
    files["user_features.csv"] = kuaishou_users(rng, users)
    number = np.arange(videos)
    files["item_categories.csv"] = pd.DataFrame(
        {"video_id": number, "feat": ["[27, 9]" if n % 2 else "[8]" for n in number]}
    )
    daily = pd.DataFrame(
        {
            "video_id": np.repeat(number, 3),
            "date": np.tile([20200705, 20200706, 20200707], videos),
            "author_id": np.repeat(number // 2, 3),
            "video_type": "NORMAL",
            "upload_type": np.repeat(np.where(number % 3, "ShortImport", "LongImport"), 3),
            "music_id": np.repeat(number % 4, 3),
            "like_cnt": rng.integers(0, 9, 3 * videos),
        }
    )
    daily.loc[daily["video_id"] == 0, "video_type"] = "AD"
    files["item_daily_features.csv"] = daily
    files["social_network.csv"] = pd.DataFrame({"user_id": [1], "friend_list": ["[2]"]})
    return {f"data/{name}": frame for name, frame in files.items()}


# --- others


def criteo(rng, rows=900):
    converted = rng.random(rows) < 0.3
    clicked = rng.random(rows) < 0.4
    frame = {
        "timestamp": np.sort(rng.choice(30 * 86_400, rows, replace=False)),
        "uid": rng.integers(0, 60, rows) * 1_000_003,
        "campaign": rng.choice([10341182, 30801593, 17686799], rows),
        "conversion": converted.astype(int),
        "conversion_timestamp": np.where(converted, 1_449_193, -1),
        "conversion_id": np.where(converted, 3_063_962, -1),
        "attribution": (converted & (rng.random(rows) < 0.5)).astype(int),
        "click": clicked.astype(int),
        "click_pos": np.where(converted & clicked, 0, -1),
        "click_nb": np.where(converted & clicked, 7, -1),
        "cost": rng.random(rows).round(6) / 1000,
        "cpo": rng.random(rows).round(6),
        "time_since_last_click": np.where(rng.random(rows) < 0.3, -1, rng.integers(0, 9999, rows)),
    }
    for n in range(1, 10):
        frame[f"cat{n}"] = rng.integers(0, 3 + n, rows) * 1_000_007
    return pd.DataFrame(frame)


def aliexpress(rng, rows):
    frame = {"search_id": rng.integers(0, 10**12, rows)}
    for n in range(1, 17):
        frame[f"categorical_{n}"] = rng.integers(0, 2 + n, rows)
    for n in range(1, 64):
        frame[f"numerical_{n}"] = rng.normal(size=rows).round(4)
    frame["click"] = rng.integers(0, 2, rows)
    frame["conversion"] = frame["click"] * rng.integers(0, 2, rows)
    return pd.DataFrame(frame)


def tenrec(rng, rows=900, history=False):
    frame = {"user_id": rng.integers(0, 30, rows), "item_id": rng.integers(1, 40, rows)}
    for name in ("click", "follow", "like", "share"):
        frame[name] = rng.integers(0, 2, rows)
    frame["video_category"] = rng.integers(0, 3, rows)
    frame["watching_times"] = frame["click"] * rng.integers(1, 9, rows)
    frame |= {"gender": rng.integers(0, 3, rows), "age": rng.integers(0, 8, rows)}
    if history:
        for n in range(1, 11):
            frame[f"hist_{n}"] = rng.integers(0, 40, rows) * (rng.random(rows) < 0.5)
    frame = pd.DataFrame(frame)
    frame["video_category"] = frame["video_category"].astype(str).replace("2", "\\N")
    return frame


def taobao(rng, rows=1200):
    users, ads, categories = 15, 12, 4
    local = pd.date_range("2017-05-06 09:00", "2017-05-13 23:50", rows, tz=BEIJING).round("s")
    seconds = local.tz_convert("UTC").tz_localize(None).astype("datetime64[s]").astype(int)
    clicked = rng.integers(0, 2, rows)
    shown = pd.DataFrame(
        {
            "user": rng.integers(1, users, rows),
            "time_stamp": seconds,
            "adgroup_id": rng.integers(1, ads, rows),
            "pid": rng.choice(["430548_1007", "430539_1007"], rows),
            "nonclk": 1 - clicked,
            "clk": clicked,
        }
    )
    number = np.arange(1, ads)
    features = pd.DataFrame(
        {
            "adgroup_id": number,
            "cate_id": 6400 + number % categories,
            "campaign_id": number // 2,
            "customer": number // 3,
            "brand": [None if n == 5 else 95471 + n % 3 for n in number],
            "price": rng.random(len(number)).round(2) * 100,
        }
    )
    features["brand"] = features["brand"].astype("Int64").astype(str).replace("<NA>", "NULL")
    person = np.arange(1, users - 1)  # the last user is not described
    profile = {"userid": person, "cms_segid": person % 5, "cms_group_id": person % 3}
    profile |= {"final_gender_code": 1 + person % 2, "age_level": person % 4}
    profile["pvalue_level"] = pd.array([None if n % 3 else 2 for n in person], "Int64")
    profile |= {"shopping_level": 1 + person % 3, "occupation": person % 2}
    profile["new_user_class_level "] = pd.array([None if n % 2 else n % 4 for n in person], "Int64")
    acts = 3000
    behaviour = pd.DataFrame(
        {
            "user": rng.integers(1, users, acts),
            "time_stamp": rng.integers(seconds.min() - 86_400 * 10, seconds.max() + 600, acts),
            "btag": rng.choice(["pv", "cart", "fav", "buy"], acts),
            "cate": 6400 + rng.integers(0, categories, acts),
            "brand": 95471,
        }
    )
    return {
        "raw_sample.csv": shown,
        "ad_feature.csv": features,
        "user_profile.csv": pd.DataFrame(profile),
        "behavior_log.csv": behaviour,
    }
