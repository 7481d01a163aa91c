"""The words that the gate looks for (safeclip/guard.py), in bare lists.

Notation: "word" is the whole word or its plural, with anything but letters within; "word*" is also the beginning of a
longer word; "*word*" stands anywhere in a word; "word=" allows no space within, or one after every letter, where
ordinary words would make it up otherwise. Chinese, Japanese and Korean terms stand anywhere.
"""

# Minors, and people whose age the word leaves open.
MINOR = """
adolescen* ado ados baby* babies bby *boy* boi child *child* children childhood chld daycare daughter freshman girl
*girl* girlie grl gurl grade grader infant infants infantil* infancy juvenil* kid kids kidz kiddo kiddie kiddies
kindergart* lad laddie lass= lassie minor minors minority newborn nephew niece nursery nymphet offspring orphan
*petite* pubescen* prepubescen* preschool* prom pupil *pupils* preteen* puberty school *school* sibling sister
*sister* brother *brother* son= sons stepson grandson *student* *teen* teen teens teenage teenager tween* toddler*
tot= tyke underage* under-age underaged urchin youth* young young* youngling barelylegal virgin virgins cheerleader
crib= diaper diapers nappy playground playpen pram stroller pigtails pacifier cub nino ninos nina ninas ninez ninit*
chico chicos chica chicas chiquill* chiquit* joven* jovenes jovencit* muchach* menor menores bebe bebes hijo hija
escolar* colegial* alumn* mocos* nene nena crio cria puberes enfan* fille fillette* garcon* gamin* gosse mome mineur
mineure mineurs mineures jeune jeunes jeunesse lycee* collegien* ecolier* ecoliere* eleve fils nourrisson nouveau-ne
pucelle cadette kind kinder kindes kindlich* kleinkind* madchen *madchen* maedchen *maedchen* madel junge jungen
jungs bub buben jugend* minderjahrig* minderjaehrig* saugling* schuler* schueler* tochter sohn teenie* halbwuchsig*
jungfrau* bambin* bimb* ragazz* fanciull* minorenn* neonat* figlio figlia figli giovan* adolescent* scolar* pargol*
studentess* crianca* menino menina menin* garot* rapaz rapariga* moca mocinh* moleque* miud* filho filha pirralh*
novinh* jovem jovens guri guria kindje* meisje* jongen* jongetj* minderjarig* puber pubers tiener* peuter* kleuter*
zoon dochter leerling* dziecko dzieci* dzieck* dziewczyn* dziewczynk* chlopiec chlopc* chlopak nastolat* nieletni*
maloletni* niemowl* uczen* uczenn* corka cocuk* cocug* bebek* ergen* kiz kizlar oglan* liseli* ogrenci* barn barnet
flicka flickor pojke* tonaring* jente jenter gutt pige piger dreng* lapsi lapset tytto* poika anak gadis remaja
bocah ребен* ребён* дет* девочк* девуш* мальчи* подрост* малолет* несовершеннолет* школьни* младен* дитин* дівчин*
хлопч* юн* παιδι* κοριτσ* αγορι* εφηβ* ανηλικ* طفل* اطفال* بنت* ولد* مراهق* قاصر* ילד* נער* קטין* תינוק* बच्च* लड़क*
किशोर* नाबालिग* 子供 子ども こども 少女 少年 幼女 幼児 児童 女児 男児 赤ちゃん 未成年 中学生 小学生 高校生 女子高生
女の子 男の子 儿童 兒童 孩 幼童 男孩 女孩 婴儿 嬰兒 中学 小学 高中 萝莉 正太 아이 아동 소녀 소년 어린 미성년 청소년
여고생 초등학생 중학생 고등학생 유아 preteen preteens childlike schoolgirl schoolgirls schoolboy
schoolboys teenagers stepdaughter stepsister stepbrother classmate underclassman highschool
"""

# Sexual acts and wishes, nudity, and what is sexual beside a minor.
SEXUAL = """
anal= anus= aroused arousal ass= asshole bdsm bikini blowjob bondage boner boob *boobs* boobies booty bra
*breast* *brothel* busty butt buttocks bust cameltoe clit* cleavage climax cock cocks *coitus* condom *copulat*
crotch cum cumming cumshot *cunt* *cunniling* deepthroat *dildo* dick dicks *dominatrix* doggystyle *ejaculat* erect
erection* *erotic* erotica escort fap fellat* fetish* fingering fondl* foreplay *fornicat* fuck* *fuck* gangbang
*genital* groin groping grope groped handjob *hentai* horny *hooker* hump *incest* *intercourse* kink kinky labia
lewd *lingerie* *libido* loin loins *masturbat* milf molest* *molest* naked *naked* nipple* *nipple* nsfw nude
*nude* nudes nudity nudist nudism nympho* obscen* onlyfans oral *orgasm* orgy orgies *panties* panty pants-down
*penis* penile penetrat* phall* *porn* pr0n provocativ* prostitut* *prostitut* pubic pussy pussies rape raped rapes
rapist raping rectum scrotum semen sensual* sex *sexu* sexy sext sexting sexed sexes *sexo* seggs shag shagging
shirtless slut* *slut* smut sodom* sperm* spank* stripper* striptease strip-tease suck sucks sucking seminude
squirting swimsuit swimwear testicle* thong threesome tit tits titty titties topless twerk* underwear unclothed
undress* unzipped upskirt vagin* *vagina* vibrator *voyeur* vulva* wank* wet-dream whore* *whore* xrated x-rated xxx
yiff desnud* desnudez sexual* pornograf* culo culos teta tetas pene polla follar coger chupar mamada verga cono puta
putas violacion violar corrida masturb* eroti* lencer* braga bragas sujetador pezon* nu= nue= nus= nues= nudite sexe=
sexuel* seins sein couille* baise* baiser chatte fesse* viol violer pute salope branl* culotte* sucer nackt* *nackt*
sexuell* brust bruste brueste busen schwanz muschi fotze fick* *fick* arsch hure vergewaltig* unterwasche
unterwaesche entkleid* nackig titten erotisch* hoden scheide nuda nudo nudi sesso sessual* cazzo figa fica tette
scopare pompino troia stupro stuprare mutand* mutandine reggiseno capezzol* pelad* pelado pelada nua= nuas sexo bunda
buceta pau caralho foder peito peitos transar estupro estupr* calcinha* sutia punhet* gozar naakt* bloot seks*
*seks* neuken kut borsten tieten verkracht* geil* nago naga nagi nagie goly gola cycki cipa kutas jebac gwalt*
ciplak* *ciplak* cinsel* seksi sikis* tecavuz* naken* nakna knull* fitta kuk rov nogen* alaston telanjang bugil
ngentot memek kontol секс* *секс* порн* голый голая голые голое голы* обнажен* обнажён* эрот* сиськ* грудь жопа член
пизд* еба* ебл* трах* изнасил* минет* σεξ* γυμν* πορν* جنس* عاري* عارية عري* اباحي* سكس* מין סקס* עירום* ערומ*
פורנו* सेक्स* नंग* अश्लील* यौन* 性交 性的 性感 性爱 性愛 性器 性虐 裸 全裸 ヌード セックス エロ ポルノ 乳首 おっぱい
色情 情色 乳房 强奸 強姦 淫 做爱 做愛 阴茎 陰茎 阴道 내복 섹스 섹시 누드 알몸 나체 야동 포르노 성기 성관계 가슴 강간
lust lusty lustful seduce seduced seducing seduction seductive nudists prostitute prostitutes masturbate
masturbating masturbation sexual sexually vagina genitals breasts nipples pornography orgasm slutty whores fucked
fucker fucking panties
"""

# Dropped whatever they stand beside.
EXCLUDED = """
loli lolis lolita* *lolicon* shota= shotas= *shotacon* jailbait *jailbait* pedo pedos paedo paedos *pedophil*
*paedophil* pedofil* padophil* kinderporn* childporn *childporn* kiddieporn *kiddieporn* педофил* ロリコン ロリータ
ショタ 炼铜 恋童
"""

# Numbers up to seventeen as words: the large ones stand for an age alone, the small ones beside a unit.
TEENS = """
eleven twelve thirteen fourteen fifteen sixteen seventeen doce trece catorce quince dieciseis diecisiete onze douze
treize quatorze seize dixsept zwolf zwoelf dreizehn vierzehn funfzehn fuenfzehn sechzehn siebzehn undici dodici
tredici quattordici quindici sedici diciassette doze treze catorze dezesseis dezasseis dezessete dezassete
twaalf dertien veertien vijftien zestien zeventien tretton fjorton femton sjutton tretten
fjorten femten sytten
jedenascie dwanascie trzynascie czternascie pietnascie szesnascie siedemnascie jedenastol* dwunastol* trzynastol*
czternastol* pietnastol* szesnastol* siedemnastol* одиннадцат* двенадцат* тринадцат* четырнадцат* пятнадцат*
шестнадцат* семнадцат* одинадцят* дванадцят* тринадцят* чотирнадцят* шістнадцят* сімнадцят* quinceaner*
undicenn* dodicenn* tredicenn* quattordicenn* quindicenn* sedicenn* diciassettenn* settenne novenne decenne
"""
SMALL_NUMBERS = """
one two three four five six seven eight nine ten un uno una dos tres cuatro cinco seis siete ocho nueve diez
once deux trois quatre cinq sept huit neuf dix ein eins zwei drei vier funf fuenf sechs sieben acht neun zehn
elf due tre quattro cinque sei sette otto nove dieci um uma dois duas quatro sete oito dez twee drie vijf zes
zeven negen tien
"""
# Of languages whose small numbers are words of others: the units, of which those with a star may go on, and numbers.
NUMBERS_OF_UNITS = {
    "ar aring* arig* arsgam* manad* maned*": """
ett en tva tre fyra fem sex sju atta nio tio elva tolv sexton et to fire seks syv otte atte ni ti elleve seksten
""",
    "jaar* jarig* maand*": "en",  # "een": a letter stands for many of it, and two of them would make the search slow
    "yas* ay aylik*": "bir iki uc dort bes alti yedi sekiz dokuz on",
    "lat let* latk* rok roku roczn* miesi*": """
jeden jedno dwa dwu trzy cztery cztero piec piecio szesc szescio siedem siedmio osiem osmio dziewiec dziewiecio
dziesiec dziesiecio
""",
    "лет* год* рок* річ* міс* мес*": """
один одно два две двух дві дво три трех трьох четыре четырех чотири чотирьох пять пяти шесть шести шість семь семи сім
восемь восьми вісім девять девяти десять десяти
""",
    "साल* वर्ष*": """
एक दो तीन चार पांच पाँच छह छः सात आठ नौ दस ग्यारह बारह तेरह चौदह पंद्रह पन्द्रह सोलह सत्रह
""",
    "سن* عام* اعوام* شهر* اشهر*": """
سنتين ثلاث ثلاثة اربع اربعة خمس خمسة ست ستة سبع سبعة ثمان ثماني ثمانية تسع تسعة عشر عشرة
""",
    "שנ* חודש*": "שתי שלוש שלושה ארבע ארבעה חמש חמישה שש שישה שבע שבעה שמונה תשע תשעה עשר עשרה",
    "살*": "한 두 세 네 다섯 여섯 일곱 여덟 아홉 열 열한 열두 열세 열네 열다섯 열여섯 열일곱",
    "세*": "십 십일 십이 십삼 십사 십오 십육 십칠",
}
# Units of an age; the first kind may go on ("years", "jährige"), the second may not.
AGE_UNITS = """
year yr month week jahr jaehr monat meses mesi mois annos anni anno jaar jarig maand лет год рок міс мес साल वर्ष سن שנ
yearold letni
"""
SHORT_AGE_UNITS = "y yo yold old an ans ano anos let lat rok roku ar yas ay mo mos"
EAST_ASIAN_AGE_UNITS = "歳 才 岁 歲 세 살 か月 ヶ月 カ月 个月 個月 개월"
# Words before a number that make it an age, and before eighteen that make it a lower one.
AGE_WORDS = "age aged ages edad alter eta idade leeftijd turned turning tiene"
BELOW = """
under below sub barely just turned nearly almost only not newly freshly fresh younger menor menores moins unter u
"""
