"""The words of the simulated world: topics, sentences in eleven languages, names, places. All invented for the sandbox.

A post is an opening sentence about its topic, a second sentence, and trimmings (hashtags, mentions, emoji, links), so a
few hundred lines make millions of different posts, while which of them a rule matches can be computed per line.
"""

# ruff: noqa: RUF001 - these are other languages, not lookalikes

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """What a post is about. `weight` is its share of the world's talk, relative to the others."""

    name: str
    weight: float
    words: tuple[str, ...]
    hashtags: tuple[str, ...]
    domain: str
    cashtag: str = ""


@dataclass(frozen=True, slots=True)
class Language:
    """One language of the world: `openings` hold `{t}` where the topic's word goes."""

    code: str
    weight: float
    openings: tuple[str, ...]
    sentences: tuple[str, ...]
    unspaced: bool = False


TOPICS = (
    Topic("Python", 26, ("python", "Python", "python typing", "asyncio in python"), ("Python", "pydata", "100DaysOfCode"), "Programming languages"),
    Topic("Data engineering", 14, ("data engineering", "a data lake", "parquet", "airflow"), ("DataEngineering", "BigData", "parquet"), "Technology"),
    Topic("Artificial intelligence", 12, ("AI", "machine learning", "a language model", "AI & ethics"), ("AI", "MachineLearning"), "Technology", "NVDA"),
    Topic("Football", 11, ("football", "the derby", "our goalkeeper", "penalties"), ("football", "matchday"), "Sports"),
    Topic("Coffee", 8, ("coffee", "espresso", "filter coffee", "a flat white"), ("coffee", "barista"), "Food"),
    Topic("Climate", 7, ("climate", "heat pumps", "solar power", "the drought"), ("climate", "energy"), "Environment", "ENPH"),
    Topic("Films", 7, ("the new film", "cinema", "documentaries", "that sequel"), ("film", "cinema"), "Entertainment"),
    Topic("Rust", 6, ("rust", "Rust", "the borrow checker", "rust async"), ("rustlang", "Rust"), "Programming languages"),
    Topic("Music", 6, ("music", "vinyl", "the concert", "jazz"), ("music", "NowPlaying"), "Entertainment", "SPOT"),
    Topic("Cycling", 5, ("cycling", "my commute", "bike lanes", "gravel bikes"), ("cycling", "bikeTwitter"), "Sports"),
    Topic("Gardening", 4, ("gardening", "tomatoes", "compost", "raised beds"), ("gardening", "growyourown"), "Hobbies"),
    Topic("Space", 4, ("space", "the launch", "Mars", "the telescope"), ("space", "astronomy"), "Science"),
    Topic("Books", 4, ("books", "the novel", "poetry", "my reading list"), ("books", "amreading"), "Entertainment"),
    Topic("Travel", 3, ("travel", "night trains", "the ferry", "hostels"), ("travel", "nighttrain"), "Travel"),
    Topic("Economy", 3, ("the economy", "interest rates", "rents", "the S&P"), ("economy", "markets"), "Business", "SPY"),
    Topic("Chess", 2, ("chess", "the endgame", "blitz", "that gambit"), ("chess", "endgame"), "Games"),
)  # fmt: skip

LANGUAGES = (
    Language(
        "en",
        55,
        (
            "Spent the whole morning on {t} and I regret nothing.",
            "Unpopular opinion: {t} is better than people admit.",
            "Can someone explain {t} to me like I'm five?",
            "Today I learned something new about {t}.",
            "We need to talk about {t}.",
            "{t} again, because of course it is.",
            "Notes from yesterday's meetup on {t} are finally online.",
            "My grandmother asked me about {t} & I had no good answer.",
            "Hot take: most problems with {t} are people problems.",
            "If you like {t}, you will love what comes next.",
            "Three years of {t} and this still surprises me.",
            "Looking for good reading about {t}, any ideas?",
            "The state of {t} in one sentence: promising, but late.",
            "I wrote a short thread about {t} and what I got wrong.",
            "Nobody told me {t} could be this much fun.",
            "Why does every conversation end up at {t}?",
        ),
        (
            "Small steps > big plans.",
            "It took two cups of tea and one long walk to get there.",
            "More on that tomorrow, when I have slept.",
            "The details are in the link, as always.",
            "Thanks to everyone who answered the last time!",
            "I was wrong about this in 2019 and I may be wrong again.",
            "Numbers first, opinions second.",
            "Please be kind in the replies.",
            "There is a simple version and there is the true version.",
            "Half of it works, the other half is a lesson.",
            "If a < b and b < c, somebody will still argue about it.",
            "The neighbours must think we are mad.",
            "It rained the entire time and nobody cared.",
            "One day I will write this down properly.",
            "That's it, that's the post.",
            "Ask me anything, I have a train ride of four hours ahead.",
            "Pros & cons below, make up your own mind.",
            "The queue went around the corner twice.",
            "Our team has been waiting for this since spring.",
            "Reminder to drink some water.",
            "You can see the difference within a week.",
            "Sources at the end, corrections welcome.",
            "It is cheaper than last year and still too expensive.",
            "Somebody should make a map of this.",
        ),
    ),
    Language(
        "ja",
        10,
        (
            "今日は{t}のことを一日中考えていた。",
            "{t}について新しい記事を書きました。",
            "{t}が好きな人と話したい。",
            "やっと{t}の良さが分かってきた気がする。",
            "{t}の勉強会、とても楽しかったです。",
            "朝から{t}、夜まで{t}。",
        ),
        (
            "明日もがんばろう。",
            "詳しくはリンク先をご覧ください。",
            "雨が降っているので家でのんびりしています。",
            "みなさんはどう思いますか。",
            "写真はあとで載せます。",
            "思ったより時間がかかった。",
            "おすすめがあれば教えてください。",
            "猫が邪魔をして進まない。",
        ),
        unspaced=True,
    ),
    Language(
        "es",
        8,
        (
            "Hoy he pasado toda la mañana con {t}.",
            "¿Alguien más está cansado de hablar de {t}?",
            "Lo que nadie te cuenta sobre {t}.",
            "Gran charla sobre {t} en la biblioteca del barrio.",
            "Empiezo a entender {t}, por fin.",
            "{t}: lo bueno, lo malo y lo raro.",
        ),
        (
            "Mañana os cuento más.",
            "Ha llovido todo el día y no ha importado.",
            "Gracias a todos por venir.",
            "Los números están en el enlace.",
            "Mi madre dice que exagero.",
            "Con calma se llega lejos.",
            "Se aceptan correcciones.",
            "Menos ruido y más cuidado.",
        ),
    ),
    Language(
        "pt",
        6,
        (
            "Passei a manhã inteira com {t}.",
            "Ninguém me avisou que {t} era assim.",
            "Vamos falar de {t}?",
            "Aprendi hoje uma coisa nova sobre {t}.",
            "Quem gosta de {t} levanta a mão.",
        ),
        (
            "Amanhã conto o resto.",
            "Obrigado a quem respondeu.",
            "Choveu o tempo todo e foi ótimo.",
            "Os números estão no link.",
            "Devagar também se chega.",
            "Aceito sugestões & críticas.",
            "A fila dava a volta ao quarteirão.",
        ),
    ),
    Language(
        "de",
        5,
        (
            "Den ganzen Vormittag mit {t} verbracht.",
            "Kann mir jemand {t} in zwei Sätzen erklären?",
            "Heute wieder etwas über {t} gelernt.",
            "Über {t} müssen wir noch einmal reden.",
            "{t} ist besser als sein Ruf.",
        ),
        (
            "Mehr dazu morgen, wenn ich geschlafen habe.",
            "Die Zahlen stehen im Link.",
            "Es hat durchgehend geregnet und niemanden gestört.",
            "Danke für die vielen Antworten!",
            "Schritt für Schritt, ohne Hektik.",
            "Meine Nachbarn halten mich für verrückt.",
            "Korrekturen sind willkommen.",
        ),
    ),
    Language(
        "fr",
        4,
        (
            "Toute la matinée sur {t}, sans regret.",
            "Il faut qu'on parle de {t}.",
            "J'ai enfin compris quelque chose à {t}.",
            "Qui peut m'expliquer {t} simplement ?",
            "Belle rencontre autour de {t} hier soir.",
        ),
        (
            "La suite demain.",
            "Merci à toutes et à tous pour vos réponses.",
            "Il a plu tout le temps, tant pis.",
            "Les chiffres sont dans le lien.",
            "On avance petit à petit.",
            "Ma grand-mère n'est pas d'accord.",
            "Les corrections sont bienvenues.",
        ),
    ),
    Language(
        "ar",
        3,
        (
            "قضيت الصباح كله مع {t}.",
            "هل يمكن لأحد أن يشرح لي {t}؟",
            "تعلمت اليوم شيئا جديدا عن {t}.",
            "لنتحدث قليلا عن {t}.",
        ),
        (
            "التفاصيل في الرابط.",
            "شكرا لكل من شارك في اللقاء.",
            "نكمل غدا إن شاء الله.",
            "كان المطر غزيرا ولم يهتم أحد.",
            "خطوة بعد خطوة نصل.",
        ),
    ),
    Language(
        "tr",
        3,
        (
            "Bütün sabah {t} ile uğraştım.",
            "{t} hakkında konuşmamız lazım.",
            "Bugün {t} üzerine yeni bir şey öğrendim.",
            "{t} sanıldığından daha güzel.",
        ),
        (
            "Devamı yarın.",
            "Cevap veren herkese teşekkürler.",
            "Yağmur hiç durmadı ama keyfimiz yerindeydi.",
            "Ayrıntılar bağlantıda.",
            "Yavaş yavaş ilerliyoruz.",
        ),
    ),
    Language(
        "ko",
        2,
        (
            "오늘은 하루 종일 {t} 생각만 했다.",
            "{t} 좋아하는 사람 있나요?",
            "드디어 {t} 조금 이해했다.",
            "{t} 모임이 정말 즐거웠습니다.",
        ),
        (
            "자세한 내용은 링크에 있습니다.",
            "내일 또 쓰겠습니다.",
            "비가 와서 집에서 쉬는 중입니다.",
            "추천해 주시면 감사하겠습니다.",
            "생각보다 오래 걸렸다.",
        ),
        unspaced=True,
    ),
    Language(
        "hi",
        2,
        (
            "आज पूरा दिन {t} में निकल गया।",
            "कोई मुझे {t} समझा सकता है?",
            "{t} के बारे में आज कुछ नया सीखा।",
        ),
        (
            "बाकी कल बताता हूँ।",
            "लिंक में सब लिखा है।",
            "सबका बहुत धन्यवाद।",
            "बारिश होती रही और मज़ा आता रहा।",
        ),
    ),
    Language(
        "und",
        2,
        ("{t}!!!", "{t} ¯\\_(ツ)_/¯", "{t} ... {t}", "👀 {t}"),
        ("🔥🔥🔥", "…", "!!!", "¯\\_(ツ)_/¯"),
    ),
)

HASHTAGS = (
    "news", "today", "MondayMotivation", "throwback", "weekend", "opensource", "caturday", "photooftheday", "日常", "Noticias",
    "writing", "remotework", "TIL", "community", "ThursdayThoughts", "local",
)  # fmt: skip
EMOJI = ("🙂", "😂", "🔥", "🎉", "👩🏽‍💻", "🐍", "🚀", "❤️", "🤔", "🌱", "⚽", "☕", "🇯🇵", "🏳️‍🌈", "👀", "💥")

SITES = (
    ("harbour-gazette.example", "The Harbour Gazette", "Local reporting from the quay, the market and the council"),
    ("notebook.example", "A Notebook", "Half-finished thoughts about software, bread and bicycles"),
    ("lake-papers.example", "Lake Papers", "Long reads on data, water and the people between them"),
    ("videos.example", "Moving Pictures", "Watch it, rate it, forget it"),
    ("code.example", "A code forge", "A place where code lives"),
    ("shop.example", "The corner shop", "Everything you did not know you needed, at fair prices"),
    ("weather.example", "Seven-day forecast", "Cloudy with a chance of sun"),
    ("podcast.example", "Kitchen Radio", "Conversations recorded next to a boiling pot"),
)

SOURCES = ("Twitter Web App", "Twitter for iPhone", "Twitter for Android", "TweetDeck", "Buffer", "Sandbox Bot")

FIRST_NAMES = (
    "Ada", "Noor", "Kenji", "Lucía", "João", "Mette", "Tunde", "Ines", "Olga", "Ravi", "Aylin", "Marek", "Sofia", "Yuki", "Amal",
    "Pierre", "Greta", "Minjun", "Zola", "Théo", "Hana", "Diego", "Ruth", "Kofi",
)  # fmt: skip
LAST_NAMES = (
    "Rivers", "Haddad", "Sato", "Vega", "Pinto", "Holm", "Okafor", "Costa", "Petrova", "Iyer", "Kaya", "Nowak", "Lind", "Mori",
    "Stone", "Dupont", "Weber", "Kim", "Dube", "Moreau", "Field", "Ruiz", "Cole", "Mensah",
)  # fmt: skip
HANDLES = (
    "blue", "quiet", "north", "paper", "river", "tiny", "lunar", "amber", "fuzzy", "solar", "night", "green", "salty", "pixel",
    "velvet", "copper",
)  # fmt: skip
BIOS = (
    "Builds things, breaks things, writes about both. Opinions are my own & subject to change.",
    "Data by day, bread by night. She/her. DMs open for good puns.",
    "Journalist. Tips to the address in my profile. Retweets <> endorsements.",
    "Father of two, owner of zero free evenings. #cycling #coffee",
    "本と猫と散歩。たまにプログラミング。",
    "Periodista y lectora. Aquí solo hablo de lo que me gusta.",
    "Official account of nothing in particular. Operated by @bluepaper_0.",
    "Student of everything. Slow replies, long walks.",
    "",
)
LOCATIONS = (
    "Lisbon",
    "somewhere on a train",
    "東京",
    "Lagos, Nigeria",
    "Berlin",
    "São Paulo",
    "earth 🌍",
    "Toronto",
    "",
)

PLACES = (
    ("Harbour City", "Portland", "Exampleland", "PT", "city", -9.23, 38.69),
    ("東京", "東京都", "日本", "JP", "admin", 139.56, 35.51),
    ("Mitte", "Berlin", "Germany", "DE", "neighborhood", 13.37, 52.5),
    ("Manhattan", "Manhattan, NY", "United States", "US", "city", -74.03, 40.68),
    ("Palermo", "Buenos Aires", "Argentina", "AR", "neighborhood", -58.45, -34.6),
    ("Lagos", "Lagos", "Nigeria", "NG", "city", 3.3, 6.4),
    ("Corner Café", "Lyon", "France", "FR", "poi", 4.83, 45.76),
    ("Brasil", "Brasil", "Brasil", "BR", "country", -73.98, -33.75),
)
"""Name, the name around it, country, country code, kind, longitude, latitude."""

POLLS = (
    ("Tabs", "Spaces"),
    ("Yes", "No", "Show me the results"),
    ("Monday", "Tuesday", "Thursday", "Never"),
    ("Tea ☕", "Coffee", "Water & nothing else"),
)
